"""A Prometheus of the tests' own: the shipped configuration and rules, on loopback, scraping every second."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tasks.one_machine.tied import tied_to_us
from tests.ops.ports import free_port
from tests.until import until

SHIPPED = Path(__file__).parents[2] / "ops" / "prometheus"


class PrometheusServer:
    """One server with a directory of its own. `close()` ends it and removes everything.

    Start it from a thread that lives as long as it shall: the kernel kills it with that thread.
    """

    def __init__(self, workers: Mapping[str, Iterable[int]], exporter: int | None = None) -> None:
        """`workers`: by host, the ports of its /metrics on loopback; `exporter`: that of the fleet's exporter."""
        self.directory = Path(tempfile.mkdtemp(prefix="droveway-prometheus-"))
        self.port = free_port()
        shutil.copytree(SHIPPED / "rules", self.directory / "rules")
        configuration = (SHIPPED / "prometheus.yml").read_text()
        quick = configuration.replace("_interval: 15s", "_interval: 1s").replace(
            "localhost:9090", f"127.0.0.1:{self.port}"
        )
        assert quick.count("_interval: 1s") == 2, "the shipped intervals have other words now"
        (self.directory / "prometheus.yml").write_text(quick)
        targets = self.directory / "targets"
        targets.mkdir()
        hosts = [{"labels": {"host": host}, "targets": _addresses(ports)} for host, ports in workers.items()]
        (targets / "workers.yml").write_text(json.dumps(hosts))
        found = [{"targets": _addresses([exporter])}] if exporter else []
        (targets / "exporter.yml").write_text(json.dumps(found))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it is ready."""
        command = ["prometheus", f"--config.file={self.directory}/prometheus.yml"]
        command += [f"--storage.tsdb.path={self.directory}/data", f"--web.listen-address=127.0.0.1:{self.port}"]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(tied_to_us(command), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        until("Prometheus' readiness", self._ready, seconds=30.0)

    def _ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.directory / "log").read_text()[-2000:]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def ask(self, path: str, **parameters: object) -> Any:
        """The `data` of an answer of /api/v1; raises AssertionError with what it says against the question."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters, doseq=True)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path} {parameters}: {error.read().decode()}") from None

    def over(self, expression: str, begin: float, end: float) -> list[dict[str, Any]]:
        """The series of an expression, second by second, that have a number anywhere in that time."""
        found = self.every(expression, begin, end)
        return [each for each in found if any(value != "NaN" for _, value in each["values"])]

    def every(self, expression: str, begin: float, end: float) -> list[dict[str, Any]]:
        """The series of an expression, second by second."""
        found: list[dict[str, Any]] = self.ask("query_range", query=expression, start=begin, end=end, step=1)["result"]
        return found

    def now(self, expression: str) -> list[dict[str, Any]]:
        """Its series at this moment."""
        found: list[dict[str, Any]] = self.ask("query", query=expression)["result"]
        return found

    def close(self) -> None:
        """End it and remove its directory; harmless when repeated."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=30)
            self._process = None
        shutil.rmtree(self.directory, ignore_errors=True)


def _addresses(ports: Iterable[int]) -> list[str]:
    return [f"127.0.0.1:{port}" for port in ports]
