"""What is served over HTTP: /metrics, /healthz (this process does its work), /readyz (and Redis answers).

Metrics and /healthz need no Redis. Each answer is made in a thread of its own, so that a slow one holds up no other.
What goes wrong with one is a line of the log, or none where only the asker went away.
"""

from __future__ import annotations

import io
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from config.errors import DrovewayError, HostError

log = logging.getLogger("droveway.metrics")

#: Seconds that whoever asks may take to do so, and to take a piece of the answer: each has a thread for so long.
_PATIENCE = 10.0
#: Seconds for which an answer of Redis is believed: whoever asks every instant asks Redis no more often.
_BELIEVED = 2.0

Check = Callable[[], str | None]
"""Why not; None: all is well."""


class Recent:
    """A check that asks at most every 2 s, one thread at a time. What it raises is its answer."""

    def __init__(self, ask: Callable[[], object], clock: Callable[[], float] = time.monotonic) -> None:
        self._ask = ask
        self._clock = clock
        self._lock = threading.Lock()
        self._asked = float("-inf")
        self._answer: str | None = None

    def __call__(self) -> str | None:
        """Why not; None: all is well."""
        with self._lock:
            if self._clock() - self._asked >= _BELIEVED:
                try:
                    self._ask()
                    self._answer = None
                except DrovewayError as error:
                    self._answer = str(error)
                self._asked = self._clock()
            return self._answer


class Pulse:
    """When something that must go on went on last. `most`: seconds after which it no longer does."""

    def __init__(self, what: str, most: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._what = what
        self._most = most
        self._clock = clock
        self._beaten = clock()

    def beat(self) -> None:
        """It goes on."""
        self._beaten = self._clock()

    def __call__(self) -> str | None:
        """Why not; None: all is well."""
        age = self._clock() - self._beaten
        return (
            f"{self._what} has not gone on for {age:.0f} s: look at the log, and start it again"
            if age > self._most
            else None
        )


def well() -> None:
    """The check of who has nothing that could stand still."""


def serve(
    address: str, port: int, registry: CollectorRegistry, healthy: Check, ready: Check, setting: str
) -> Callable[[], None]:
    """Serve the three pages; the function returned ends that. Raises HostError, which names `setting`: no such port."""
    metrics = make_wsgi_app(registry)

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        match environ["PATH_INFO"]:
            case "/metrics":
                try:
                    return metrics(environ, start_response)  # type: ignore[no-any-return]
                except Exception:  # a defect in telling one figure must not pass unseen
                    log.exception("/metrics: a defect")
                    status, text = "500 Internal Server Error", "a defect: see the log\n"
            case "/healthz":
                status, text = _answer(healthy())
            case "/readyz":
                status, text = _answer(healthy() or ready())
            case _:
                status, text = "404 Not Found", "there are /metrics, /healthz and /readyz\n"
        start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [text.encode()]

    family = _SixServer if ":" in address else _Server
    try:
        server = make_server(address, port, application, family, _Silent)
    except OSError as error:
        raise HostError(
            f"/metrics cannot listen on {address}:{port} ({error.strerror}): give it another port, or 0 for none, with "
            f"{setting}."
        ) from None
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop


def _answer(trouble: str | None) -> tuple[str, str]:
    return ("200 OK", "ok\n") if trouble is None else ("503 Service Unavailable", f"{trouble}\n")


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Whoever hung up, or said nothing, is nobody's concern."""
        if not isinstance(sys.exception(), OSError):
            log.exception("nothing was answered: a defect")


class _SixServer(_Server):
    address_family = socket.AF_INET6


class _Silent(WSGIRequestHandler):
    timeout = _PATIENCE

    def get_stderr(self) -> Any:
        """What wsgiref would print when an asker takes no more: no line of a log."""
        return io.StringIO()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the name is the standard library's
        """Not every scrape is worth a line."""
