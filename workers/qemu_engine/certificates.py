"""Whether QEMU's own migration is encrypted: one rule, for both sides."""

from __future__ import annotations

from config.settings import TlsSettings
from workers.migration import Migration
from workers.pairing.agreement import Agreement


def certificates(migration: Migration, agreed: Agreement) -> TlsSettings:
    """This host's. None of them for RDMA, which QEMU cannot encrypt either, and which was asked for by name then."""
    return TlsSettings() if agreed.transport == "verbs" else migration.settings.tls
