"""The fleet's record in Redis: every change is one atomic script, conditional on the epoch, harmless when repeated."""
