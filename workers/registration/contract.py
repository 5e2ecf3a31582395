"""What every registration policy does on the source: turn ranges to be sent into writes that may be posted.

Registering a range means: the destination makes it a region and answers with a remote key; the source does its own
side. Over verbs, and under pin-all over tcp, that populates and locks it; else, over tcp, it is bookkeeping. A policy
decides *when* that happens. Untouched and zero memory is never handed to a policy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar, Protocol

from workers.ranges import RangeTable
from workers.transports.contract import Writes


class RegistrationPolicy(Protocol):
    """One policy, for one migration, on the source."""

    kind: ClassVar[str]
    #: Whether it takes registrations back while a round goes on; the caller then promises more, see `writes`.
    takes_back: ClassVar[bool]

    def prepare(self, batches: Iterable[RangeTable]) -> Iterable[RangeTable]:
        """Before the bulk round: see the batches that it will send, and hand them back for `writes`.

        `batches` is lazy: reading it surveys memory for zero pages. The guest runs meanwhile.
        """
        ...

    def writes(self, batches: Iterable[RangeTable]) -> Iterator[Writes]:
        """Writes that together cover `batches` of one round, each registered on both sides by the time it is yielded.

        What the caller promises:
        - where the policy `takes_back` registrations, before it posts what it got, it flushes what it got before;
        - it posts what it got before it asks for more, so that registering runs beside these writes; or drops it, when
          it wanted no more than the registration.
        So when it asks such a policy for more, the last that it got may be in flight, and everything before lies in the
        destination's memory; when it begins another round, everything does.
        """
        ...
