"""The destination's side of the rounds: register what it is asked for, digest what was written, say when it is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from config.errors import MessageError
from workers.conversation import Conversation
from workers.digests import PageDigests
from workers.dirty.content import digests as held
from workers.protocol import Message, MessageType, encode_regions
from workers.ram import Ram
from workers.ranges import PageRange, RangeTable
from workers.transports.contract import Endpoint, RemoteRegion

_NEXT = frozenset(
    {
        MessageType.REGISTER_REQUEST,
        MessageType.RELEASE,
        MessageType.WRITTEN,
        MessageType.ROUND_END,
        MessageType.HELD_REQUEST,
        MessageType.DIGESTS,
        MessageType.GOING_ON,
    }
)


class Incoming:
    """Serves one source until all memory is written. A context manager: it owns a digesting thread.

    Digesting runs beside serving, so that registration is never kept waiting by it. `digests` is None when `verify-ram`
    is off.
    """

    def __init__(
        self, endpoint: Endpoint, talk: Conversation, ram: Ram, digests: PageDigests | None, silence: float
    ) -> None:
        """`silence` is how long the source may say nothing, in seconds, while its connection still stands."""
        self._endpoint = endpoint
        self._talk = talk
        self._ram = ram
        self._memory = RangeTable([(0, ram.size)])
        self._digests = digests
        self._silence = silence
        self._digesting = ThreadPoolExecutor(1, "digests")
        self._undone: list[Future[None]] = []
        self._regions: dict[int, RemoteRegion] = {}
        #: Bytes registered now, the most that ever were, and bytes that the source said it has written.
        self.registered = 0
        self.most = 0
        self.written = 0

    def __enter__(self) -> Incoming:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._digesting.shutdown(wait=True, cancel_futures=True)

    def serve(self, progress: Callable[[], None]) -> Message:
        """Serve until DIGESTS, which is returned with everything written before it digested."""
        while True:
            message = self._talk.expect(_NEXT, self._silence)
            if message.type is MessageType.DIGESTS:
                self._finish_digests()
                return message
            self._serve(message)
            progress()

    def _serve(self, message: Message) -> None:
        if message.type is MessageType.GOING_ON:  # it waits for the links
            return
        if message.type is MessageType.ROUND_END:
            self._finish_digests()
            self._talk.say(MessageType.ROUND_DONE, {"round": message.body["round"]})
        elif message.type is MessageType.REGISTER_REQUEST:
            self._register(self._ranges(message))
        elif message.type is MessageType.RELEASE:
            self._release(self._ranges(message))
        elif message.type is MessageType.HELD_REQUEST:
            self._talk.say(MessageType.HELD, blob=held(self._ram).astype("<u8").tobytes())
        else:
            ranges = self._ranges(message)
            self.written += ranges.size
            if self._digests:
                self._undone.append(self._digesting.submit(self._digests.update, ranges))

    def _register(self, ranges: RangeTable) -> None:
        fresh = self._endpoint.register(ranges)
        self._regions |= {region.start: region for region in fresh}
        self.registered += ranges.size
        self.most = max(self.most, self.registered)
        self._talk.say(MessageType.REGISTER_RESULT, blob=encode_regions(fresh))

    def _release(self, ranges: RangeTable) -> None:
        """Deregister the regions that make up `ranges`; a range may be several that touch."""
        gone = [region for found in ranges for region in self._making_up(found)]
        self._endpoint.deregister(gone)
        self.registered -= ranges.size

    def _making_up(self, found: PageRange) -> Iterator[RemoteRegion]:
        at = found.start
        while at < found.end:
            region = self._regions.pop(at, None)
            if region is None or region.end > found.end:
                raise MessageError(f"the source released memory at {at:#x} that is not registered as it says")
            yield region
            at = region.end

    def _ranges(self, message: Message) -> RangeTable:
        try:
            ranges = RangeTable.from_bytes(message.blob)
        except ValueError as error:
            raise MessageError(f"the source sent a damaged {message.type.name}: {error}") from None
        if ranges - self._memory:
            raise MessageError("the source named memory that this guest does not have")
        return ranges

    def _finish_digests(self) -> None:
        for future in self._undone:
            future.result()
        self._undone.clear()
