"""Certificates for QEMU's own migration: this host's files as QEMU wants them, and who it may talk to.

Droveway's own connections compare the peer's certificate with the fingerprint that pairing announced. QEMU cannot: it
compares names. So each side is told by the other, over the connection whose certificate was compared, what the name in
that certificate is, and its QEMU takes that name only, vouched for by the CA. What follows: the CA must not give two
hosts the same name.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.x509.oid import NameOID

from config.errors import SettingsError
from config.settings import TlsSettings
from workers.guests.qemu.monitor import CommandRefusedError, Monitor

_CREDENTIALS, _CALLERS = "droveway-tls", "droveway-callers"
#: As everywhere in Droveway: TLS 1.3 or nothing.
_PRIORITY = "NORMAL:-VERS-ALL:+VERS-TLS1.3"


def listening_name(tls: TlsSettings) -> str:
    """The name by which a caller can check this host's certificate; "" without TLS. Raises SettingsError."""
    certificate = _certificate(tls)
    if certificate is None:
        return ""
    with contextlib.suppress(x509.ExtensionNotFound):
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        for name in names.get_values_for_type(x509.DNSName):
            if "*" not in name:
                return name
        for address in names.get_values_for_type(x509.IPAddress):
            return str(address)
    for attribute in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME):
        return str(attribute.value)
    raise SettingsError(f"the certificate {tls.certificate} names nobody: give it a DNS name, or use engine=droveway")


def calling_name(tls: TlsSettings) -> str:
    """The name of this host's certificate as a listener sees it (RFC 4514); "" without TLS. Raises SettingsError."""
    certificate = _certificate(tls)
    if certificate is None:
        return ""
    if not (name := certificate.subject.rfc4514_string()):
        raise SettingsError(f"the certificate {tls.certificate} has no subject: give it one, or use engine=droveway")
    return name


def as_caller(monitor: Monitor, directory: Path, tls: TlsSettings, listener: str) -> dict[str, str]:
    """Parameters with which QEMU calls nobody but the `listener` of this name. `directory` is the guest's."""
    _load(monitor, directory, tls, "client")
    return {"tls-creds": _CREDENTIALS, "tls-hostname": listener}


def as_listener(monitor: Monitor, directory: Path, tls: TlsSettings, caller: str) -> dict[str, str]:
    """Parameters with which QEMU lets in nobody but the `caller` of this name."""
    _load(monitor, directory, tls, "server")
    # Releases of GnuTLS differ in which end of a name they write first.
    names = {caller, ",".join(reversed(caller.split(",")))}
    rules = [{"match": name, "policy": "allow", "format": "exact"} for name in sorted(names)]
    _add(monitor, _CALLERS, {"qom-type": "authz-list", "policy": "deny", "rules": rules})
    return {"tls-creds": _CREDENTIALS, "tls-authz": _CALLERS}


def _certificate(tls: TlsSettings) -> x509.Certificate | None:
    if tls.certificate is None:
        return None
    try:
        return x509.load_pem_x509_certificate(tls.certificate.read_bytes())
    except (OSError, ValueError) as error:
        raise SettingsError(f"the certificate {tls.certificate} cannot be read ({error}): check tls") from None


def _load(monitor: Monitor, directory: Path, tls: TlsSettings, end: str) -> None:
    """QEMU reads its files from a directory under names of its own, once; then they can go."""
    links = directory / "tls"
    shutil.rmtree(links, ignore_errors=True)  # of a mover that died here
    links.mkdir(mode=0o700)
    try:
        for name, file in (
            ("ca-cert.pem", tls.ca),
            (f"{end}-cert.pem", tls.certificate),
            (f"{end}-key.pem", tls.key),
        ):
            assert file is not None  # all or none, as the settings say
            (links / name).symlink_to(file)
        what = {"qom-type": "tls-creds-x509", "endpoint": end, "dir": str(links), "verify-peer": True}
        _add(monitor, _CREDENTIALS, {**what, "priority": _PRIORITY})
    finally:
        shutil.rmtree(links, ignore_errors=True)


def _add(monitor: Monitor, name: str, what: dict[str, Any]) -> None:
    """Anew: certificates may have been renewed since an earlier migration."""
    with contextlib.suppress(CommandRefusedError):  # there is none
        monitor.execute("object-del", id=name)
    monitor.execute("object-add", id=name, **what)
