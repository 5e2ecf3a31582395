"""Which queue a message goes to: one for each host and role, one for all that is of no one host. Pure."""

from __future__ import annotations

from config.celery import CONTROL_QUEUE
from tasks.messages import CheckRequest, Doorbell, Message, Reconcile
from workers.pairing.contract import Side

__all__ = ["CONTROL_QUEUE", "host_queue", "queues_for", "served_by"]


def host_queue(host: str, side: Side) -> str:
    """Where a host's worker of one role listens."""
    return f"droveway.{side}.{host}"


def served_by(host: str, side: Side) -> tuple[str, ...]:
    """What a worker consumes: its own queue, and the one that any worker may serve."""
    return host_queue(host, side), CONTROL_QUEUE


def queues_for(message: Message) -> tuple[str, ...]:
    """Where a message is to be put; a ring to reconcile a host goes to both of its workers."""
    match message:
        case Doorbell() | CheckRequest():
            return (host_queue(message.host, message.side),)
        case Reconcile(host=str(host)):
            return tuple(host_queue(host, side) for side in Side)
        case _:
            return (CONTROL_QUEUE,)
