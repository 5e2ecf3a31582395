"""`max-bandwidth`: how long to wait before the next batch. Pure: the caller brings the clock and does the sleeping."""

from __future__ import annotations

#: Credit that an idle link may save up, in seconds of its rate. QEMU counts in windows of 100 ms.
_BURST_SECONDS = 0.1


class Pacer:
    """A token bucket in bytes. `rate` is bytes/s, 0 for no limit."""

    def __init__(self, rate: float, now: float) -> None:
        self._rate = rate
        self._credit = rate * _BURST_SECONDS
        self._at = now

    def delay(self, size: int, now: float) -> float:
        """Take `size` bytes at time `now`; the seconds to wait before sending them.

        A batch larger than the bucket goes into debt, so that any size passes and the mean rate holds.
        """
        if not self._rate:
            return 0.0
        self._credit = min(self._credit + (now - self._at) * self._rate, self._rate * _BURST_SECONDS) - size
        self._at = now
        return max(0.0, -self._credit / self._rate)
