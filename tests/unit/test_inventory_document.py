"""A cluster as JSON: what was written is read back the same, and what is wrong is named with its place."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config.errors import RequestError
from tasks.inventory import file
from tasks.inventory.document import read, write
from tasks.inventory.simulated import simulate
from tasks.planning.cluster import Cluster, Guest, Host
from tests.clusters import clusters

HOST = {"name": "a", "memory": 100}
GUEST = {"name": "g", "host": "a", "memory": 10}


def document(host: dict[str, Any] = HOST, guest: dict[str, Any] = GUEST, **more: Any) -> str:
    return json.dumps({"version": 1, "hosts": [host], "guests": [guest]} | more)


@settings(max_examples=80)
@given(clusters(), st.text(max_size=20).filter(lambda text: text.isprintable()), st.floats(0, 2e9))
def test_what_was_written_is_read_back_the_same(cluster: Cluster, reason: str, moment: float) -> None:
    known = {name: guest for name, guest in cluster.guests.items() if guest.host in cluster.hosts}
    known = {name: replace(guest, moved=moment) for name, guest in known.items() if guest.moving_to != "nowhere"}
    known = {name: guest for name, guest in known.items() if guest.moving_to in {"", *cluster.hosts}}
    first = next(iter(cluster.hosts.values()))
    kept = replace(cluster, guests=known, taken=moment).changed([replace(first, cordoned=reason)])
    assert read(write(kept)) == kept


def test_the_text_and_the_document_of_a_fleet_are_of_one_and_the_same() -> None:
    fleet = simulate("hosts=20,guests=200,seed=3,groups=20,uplinks=4,labels=0.2")
    assert read(write(fleet)) == file.read(file.write(fleet)) == fleet


def test_what_is_not_said_has_its_default_and_every_field_may_be_said() -> None:
    assert read(document()) == Cluster({"a": Host("a", 100)}, {"g": Guest("g", "a", 10)})
    said = json.loads(write(read(document())))
    assert said["hosts"][0].keys() == {each.name for each in fields(Host)}
    assert said["guests"][0].keys() == {each.name for each in fields(Guest)}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "fleet.json: "),
        ('{"hosts": [], "guests": []}', "version: Field required"),
        (document(version=2), "it is of version 2, this release reads 1"),
        (document(version="1"), "it is of version '1'"),
        (document(notes="x"), "notes is not understood; it may have version, taken, uplinks, hosts, guests"),
        (document({**HOST, "memroy": 1}), "hosts.0.memroy is not understood; did you mean memory; it may have name,"),
        (document(guest={**GUEST, "lod": 1}), "guests.0.lod is not understood; did you mean load"),
        (document({"name": "a"}), "hosts.0.memory: Field required"),
        (document({**HOST, "memory": "1G"}), "hosts.0.memory: Input should be a valid integer"),
        (document({**HOST, "memory": -1}), "hosts.0.memory: Input should be greater than or equal to 0"),
        (document({**HOST, "memory": 1 << 70}), "hosts.0.memory: "),
        (document({**HOST, "cpus": True}), "hosts.0.cpus: "),
        (document({**HOST, "labels": "zone=1"}), "hosts.0.labels: "),
        (document({**HOST, "name": "A"}), "'A' cannot name a host"),
        (document(guest={**GUEST, "load": float("nan")}), "guests.0.load: "),
        (document(guest={**GUEST, "moved": -1.0}), "guests.0.moved"),
        (document(guest={**GUEST, "host": "b"}), "guest g names a host b, which is nowhere described"),
        (document(guest={**GUEST, "moving_to": "b"}), "guest g names a host b"),
        (document({**HOST, "uplink": "rack1"}), "host a names an uplink rack1"),
        (document(hosts=[HOST, HOST]), "there is a host a already"),
        (document(guests=[GUEST, GUEST]), "there is a guest g already"),
        ("{" * 100_000, "fleet.json: "),
    ],
)
def test_what_is_wrong_is_named_with_its_place_and_what_was_expected(text: str, said: str) -> None:
    with pytest.raises(RequestError) as caught:
        read(text, "fleet.json")
    assert str(caught.value).startswith("fleet.json: ")
    assert said in str(caught.value)
    assert len(str(caught.value)) < 400
