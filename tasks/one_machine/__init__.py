"""A whole fleet as real processes on one machine: what the demo runs on, and the tests that kill things."""
