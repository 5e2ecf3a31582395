"""`max-bandwidth`: how long to wait before the next batch. Pure: the caller brings the clock and does the sleeping."""

from __future__ import annotations

#: Credit that an idle link may save up, in seconds of its rate. QEMU counts in windows of 100 ms.
_BURST_SECONDS = 0.1


def batch_size(rate: float, most: int, chunk_size: int) -> int:
    """Bytes to send at a time under a limit of `rate` bytes/s: what passes in a burst's time, at least a chunk.

    With the usual 32 MiB a limit of 16 MiB/s would be kept only on average: two seconds of silence, then a burst.
    """
    return max(chunk_size, min(most, int(rate * _BURST_SECONDS)) if rate else most)


class Pacer:
    """A token bucket in bytes. `rate` is bytes/s, 0 for no limit."""

    def __init__(self, rate: float, now: float) -> None:
        self.rate = rate
        self._credit = rate * _BURST_SECONDS
        self._at = now

    def delay(self, size: int, now: float) -> float:
        """Take `size` bytes at time `now`; the seconds to wait before sending them.

        A batch larger than the bucket goes into debt, so that any size passes and the mean rate holds.
        """
        if not self.rate:
            return 0.0
        self._credit = min(self._credit + (now - self._at) * self.rate, self.rate * _BURST_SECONDS) - size
        self._at = now
        return max(0.0, -self._credit / self.rate)
