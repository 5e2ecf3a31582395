"""Which memory was written: trackers of one contract, each self-tested on the worker's own memory."""
