"""A connection to one QEMU's monitor (QMP), for code that is not asynchronous: `qemu.qmp` in a thread of its own."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from qemu.qmp import EventListener, ExecInterruptedError, ExecuteError, QMPClient, QMPError, Runstate

from config.errors import HostError

log = logging.getLogger("droveway.qemu")

_T = TypeVar("_T")

#: QEMU answers within milliseconds, unless its main loop is held up by a disk (`stop` drains all of them).
ANSWER_SECONDS = 30.0
#: Somebody else's connection: a status is asked for within milliseconds.
CONNECT_SECONDS = 5.0

# It logs what it is told anyway, as errors, when QEMU goes away.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)


class CommandRefusedError(HostError):
    """QEMU understood a command and said no."""


class Monitor:
    """Ask one QEMU, and hear its events, which are kept from the first moment on. One connection, for one thread."""

    def __init__(self, name: str, path: Path | socket.socket, seconds: float = CONNECT_SECONDS) -> None:
        """Connect, unless it is a connection. Raises HostError: there is no such socket, or somebody else holds it."""
        self._name = name
        self._loop = asyncio.new_event_loop()
        # Where QEMU ends first, qemu.qmp leaves errors behind that asyncio complains of when they are collected.
        self._loop.set_exception_handler(lambda _, context: log.debug("qemu.qmp: %s", context["message"]))
        self._thread = threading.Thread(target=self._loop.run_forever, name="qmp", daemon=True)
        self._thread.start()
        self._client = QMPClient(name)
        self._events = EventListener()
        self._client.register_listener(self._events)
        connecting = asyncio.wait_for(
            self._client.connect(path if isinstance(path, socket.socket) else str(path)), seconds
        )
        try:
            self._run(connecting, seconds + 1, "let itself be connected to")
        except BaseException:
            self._stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def execute(self, command: str, seconds: float = ANSWER_SECONDS, **arguments: Any) -> Any:
        """What QEMU returns. Raises CommandRefusedError, HostError (gone, or silent for so long)."""
        return self.result(self.ask(command, **arguments), seconds, command)

    def ask(self, command: str, **arguments: Any) -> Future[Any]:
        """What QEMU will return, for a QEMU that may be too busy to answer; `result` waits for it."""
        words = {key.replace("_", "-"): value for key, value in arguments.items()}
        return asyncio.run_coroutine_threadsafe(self._client.execute(command, words or None), self._loop)

    def execute_at_once(self, command: str, **arguments: Any) -> Any:
        """As `execute`, but also by a QEMU that is too busy to answer (out of band, for the few that it takes so)."""
        return self._run(self._client.execute(command, arguments, oob=True), ANSWER_SECONDS, command)

    def send_descriptor(self, name: str, descriptor: int) -> None:
        """Give QEMU a descriptor of ours under a name. Raises as `execute`."""

        async def give() -> None:
            self._client.send_fd_scm(descriptor)
            await self._client.execute("getfd", {"fdname": name})

        self._run(give(), ANSWER_SECONDS, "getfd")

    def await_event(self, good: Callable[[dict[str, Any]], bool], seconds: float, what: str) -> dict[str, Any]:
        """The next event that is `good`; others are passed over. Raises HostError when none comes in time."""
        with self.coming(good, what) as event:
            return self.result(event, seconds, what)

    @contextmanager
    def coming(self, good: Callable[[dict[str, Any]], bool], what: str) -> Iterator[Future[dict[str, Any]]]:
        """The next event that is `good`, looked for in the body and no longer: it would take a later one's events.

        It may be asked for at any time; `result` waits for it. One at a time.
        """
        looking: asyncio.Task[Any] | None = None

        async def find() -> dict[str, Any]:
            nonlocal looking
            looking = asyncio.current_task()
            gone = asyncio.ensure_future(self._disconnected())
            coming = asyncio.ensure_future(self._events.get())
            try:
                while True:
                    await asyncio.wait({coming, gone}, return_when=asyncio.FIRST_COMPLETED)
                    if not coming.done():
                        raise HostError(f"QEMU of guest {self._name} ended while it was to {what}")
                    event = dict(coming.result())
                    if good(event):
                        return event
                    coming = asyncio.ensure_future(self._events.get())
            finally:
                await _cancelled(coming, gone)

        async def end() -> None:
            await _cancelled(looking)

        found = asyncio.run_coroutine_threadsafe(find(), self._loop)
        try:
            yield found
        finally:
            found.cancel()
            if not self._loop.is_closed():
                self._run(end(), ANSWER_SECONDS, "be left alone")

    def next_event(self, seconds: float) -> dict[str, Any] | None:
        """What QEMU says next by itself, or None when it says nothing for so long, be it alive or gone."""

        async def find() -> dict[str, Any] | None:
            try:
                return dict(await asyncio.wait_for(self._events.get(), seconds))
            except TimeoutError:
                return None

        return self._run(find(), seconds + ANSWER_SECONDS, "let itself be listened to")

    def forget_events(self) -> None:
        """What was said until now is for nobody."""

        async def forget() -> None:
            self._events.clear()

        self._run(forget(), ANSWER_SECONDS, "be listened to")

    async def _disconnected(self) -> None:
        while self._client.runstate is Runstate.RUNNING:
            await self._client.runstate_changed()

    def close(self) -> None:
        """Let others connect. Harmless when repeated, or when QEMU is gone."""
        if self._loop.is_closed():
            return
        try:
            self._run(self._client.disconnect(), ANSWER_SECONDS, "disconnect")
        except (HostError, QMPError, EOFError, OSError):
            pass
        finally:
            self._stop()

    def _run(self, coroutine: Coroutine[Any, Any, _T], seconds: float, what: str) -> _T:
        return self.result(asyncio.run_coroutine_threadsafe(coroutine, self._loop), seconds, what)

    def result(self, future: Future[_T], seconds: float, what: str) -> _T:
        """What comes of it. Raises CommandRefusedError, HostError (gone, or silent for so long)."""
        try:
            return future.result(seconds)
        except (FutureTimeoutError, TimeoutError):
            future.cancel()
            raise HostError(
                f"QEMU of guest {self._name} did not {what} within {seconds:g} s: is a disk of it stuck, or its "
                "monitor held by somebody else?"
            ) from None
        except ExecuteError as error:
            raise CommandRefusedError(f"QEMU of guest {self._name} refuses {what}: {error}") from None
        except (ExecInterruptedError, QMPError, EOFError, OSError) as error:
            raise HostError(f"QEMU of guest {self._name} cannot be asked ({error}): is it gone?") from None

    def _stop(self) -> None:
        async def rest() -> None:
            await _cancelled(*asyncio.all_tasks() - {asyncio.current_task()})

        asyncio.run_coroutine_threadsafe(rest(), self._loop).result(ANSWER_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _cancelled(*tasks: asyncio.Future[Any] | None) -> None:
    """End these, and wait until they have: a task that is dropped while it waits is complained of later."""
    ending = [task for task in tasks if task is not None]
    for task in ending:
        task.cancel()
    await asyncio.gather(*ending, return_exceptions=True)
