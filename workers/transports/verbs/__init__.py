"""The verbs transport: one-sided RDMA writes over reliable queue pairs, by pyverbs, on InfiniBand and RoCE."""

from workers.transports.verbs.endpoint import VerbsEndpoint, VerbsSettings

__all__ = ["VerbsEndpoint", "VerbsSettings"]
