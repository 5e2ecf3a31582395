"""Where moves are decided: pure functions from one immutable cluster to a plan with its reasons."""
