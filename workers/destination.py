"""The destination's side: start the incoming twin, serve the rounds, verify, take over. All stages: migration.py."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from config.capabilities import MigrationCapability as Capability
from config.errors import MessageError, VerifyError
from workers.digests import PageDigests, differing
from workers.guests.contract import Guest
from workers.guests.local import start_incoming
from workers.handover.drive import DestinationHandover
from workers.link import Link, await_source, link_as_destination, refusals_told
from workers.migration import Migration
from workers.pairing.offer import Offer
from workers.preflight import can_take
from workers.protocol import Message
from workers.ram import Ram
from workers.rounds.incoming import Incoming

#: Seconds for which a source whose connection stands may say nothing: a paced bulk batch of 16 MiB at 1 MiB/s takes 16.
_SILENCE = 120.0


def run(migration: Migration) -> None:
    """Take the guest. Raises what went wrong; the journal knows where the guest is then."""
    with refusals_told(migration):
        with migration.phase("pairing", "setup"):
            theirs = await_source(migration)
            can_take(migration, theirs)
    with _incoming(migration, theirs) as (guest, handover), Ram(guest.block_files()) as ram:
        with link_as_destination(migration, ram, theirs) as link, handover.over(link.talk):
            state, closing = _receive(migration, link, ram)
            guest.load_state(state)
            handover.take()
            closing = time.monotonic()
        migration.timeline.add("deregistration", time.monotonic() - closing)
