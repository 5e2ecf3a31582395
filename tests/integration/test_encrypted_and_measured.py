"""A whole move with the settings of a fleet that has something to hide and somebody watching: TLS, and /metrics."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from config.errors import DrovewayError
from config.settings import RedisSettings, TlsSettings
from tasks.app import bell_for
from tasks.cli.guest import announce
from tasks.ledger.ledger import Ledger
from tasks.messages import MigrateRequest, new_migration_id
from tasks.one_machine.fleet import LocalFleet
from tasks.records import MigrationRecord
from tasks.requests import admit, submit, watch
from tests.contract.tls_certificates import Authority
from tests.metrics_page import scraped_after
from workers.guests.memory_spec import MemoryGuestSpec
from workers.pairing.contract import Side


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def fleet(redis_url: str) -> Iterator[LocalFleet]:
    with LocalFleet(RedisSettings.model_validate({"url": redis_url, "prefix": f"m{secrets.token_hex(4)}:"})) as made:
        yield made


def with_tls(fleet: LocalFleet, folder: Path, **authorities: Authority) -> None:
    for name, host in fleet.hosts.items():
        files = authorities[name].host(name)
        tls = TlsSettings(certificate=files.certificate, key=files.key, ca=files.ca)
        host.settings = host.settings.model_copy(update={"tls": tls})


def move(fleet: LocalFleet, guest: str) -> MigrationRecord:
    alpha = fleet.hosts["alpha"]
    started = alpha.guests.start(MemoryGuestSpec(guest, 16 << 20, 5 << 20))
    started.wait_filled(30)
    request = MigrateRequest(migration=new_migration_id(), guest=guest, destination="beta")
    with closing(Ledger(fleet.settings)) as ledger:
        announce(ledger, alpha.settings, started)
        submit(ledger, request)
        admit(ledger, bell_for(fleet.settings))
        *_, record = watch(ledger, request.migration)
        return record


def test_a_guest_moves_over_tls_and_the_workers_count_it(fleet: LocalFleet, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    with_tls(fleet, tmp_path, alpha=authority, beta=authority)
    ports = {}
    for name, host in fleet.hosts.items():
        ports[name] = {Side.SOURCE: free_port(), Side.DESTINATION: free_port()}
        pages = {
            "metrics_source_port": ports[name][Side.SOURCE],
            "metrics_destination_port": ports[name][Side.DESTINATION],
        }
        host.settings = host.settings.model_copy(update={"host": host.settings.host.model_copy(update=pages)})
    fleet.start()
    record = move(fleet, "secret")
    assert record.state == "completed", record.message
    oracle = fleet.hosts["beta"].guests.open("secret").query_oracle(full=True)  # type: ignore[attr-defined]
    assert oracle["corrupt"] == 0

    source = scraped_after(ports["alpha"][Side.SOURCE], 1)
    assert source['droveway_migrations_total{reason="none",state="completed"}'] == 1
    assert source['droveway_migrations_total{reason="none",state="cancelled"}'] == 0, "there before it happens"
    assert source["droveway_downtime_seconds_count"] == 1
    assert not any("secret" in name or record.migration in name for name in source)
    sent = {kind: source[f'droveway_sent_bytes_total{{kind="{kind}"}}'] for kind in ("bulk", "dirty", "final")}
    assert sent["bulk"] >= 5 << 20, "all that the guest had used"
    assert sum(sent.values()) == source["droveway_transferred_bytes_total"]
    assert source['droveway_registration_wait_seconds_count{policy="dynamic"}'] == 1
    assert source["droveway_links_wait_seconds_count"] == 1
    assert source["droveway_expected_downtime_seconds_count"] == 1
    assert source['droveway_work_request_seconds_count{transport="tcp"}'] >= 2, "a frame of at most 4 MiB"
    assert source['droveway_in_flight_bytes_sum{transport="tcp"}'] >= 1 << 20
    assert source['droveway_retries_total{transport="tcp"}'] >= 0
    assert source['droveway_registered_bytes{policy="dynamic",side="source"}'] == 0, "nobody moves any more"
    for side in (record.source, record.destination):
        assert side.progress is not None
        assert side.progress["choices"]["policy"] == "dynamic"
        assert side.progress["bytes"]["registered_most"] >= sent["bulk"]
    destination = scraped_after(ports["beta"][Side.DESTINATION], 1)
    assert destination['droveway_phase_seconds_count{phase="total",side="destination"}'] == 1
    assert destination["droveway_guest_gap_seconds_count"] == 1
    assert 0 < destination["droveway_guest_gap_seconds_sum"] < 30


def test_a_host_of_another_authority_gets_nothing_and_the_guest_stays(fleet: LocalFleet, tmp_path: Path) -> None:
    with_tls(fleet, tmp_path, alpha=Authority(tmp_path, "ours"), beta=Authority(tmp_path, "theirs"))
    fleet.start()
    record = move(fleet, "secret")
    assert record.state == "failed"
    assert "certificate" in (record.message or "")
    assert fleet.hosts["alpha"].guests.open("secret").status() == "running"
    with pytest.raises(DrovewayError):
        fleet.hosts["beta"].guests.open("secret")
