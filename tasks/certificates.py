"""A fleet's own certificates: one authority, one certificate a host, one for Redis. Files in one directory.

    ca.pem      who vouches for everybody; goes to every host      ca.key   stays here, and nowhere else
    HOST.pem    a host: on the data path, and towards Redis        HOST.key goes to that host alone
    redis.pem   the Redis server                                   redis.key

Keys are ECDSA over P-256, files of keys are 0600. A certificate names its bearer once as subject (QEMU compares that)
and as DNS name and addresses (Redis' clients compare those).
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from config.errors import HostError, RequestError

AUTHORITY, REDIS = "ca", "redis"
#: A clock that is behind must not find a fresh certificate to be of tomorrow.
_SKEW = datetime.timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class Bearer:
    """Who a certificate is for: the name of its files, its DNS name, and addresses."""

    file: str
    name: str
    addresses: tuple[str, ...] = ()
    #: Whether it also calls others with it: Redis only answers.
    calls: bool = True


@dataclass(frozen=True, slots=True)
class Made:
    """One certificate as it is now. `how`: made, kept, or replaced."""

    file: str
    how: str
    names: tuple[str, ...]
    until: datetime.datetime


def make(
    directory: Path, bearers: Sequence[Bearer], *, now: datetime.datetime, days: int, ca_days: int, replace: bool
) -> list[Made]:
    """Make what is not there; the authority first, which is kept in any case. `replace`: bearers' anew.

    Nothing is written when anything is refused. Raises RequestError (a file is there for other names, or would outlive
    the authority), HostError (a file cannot be read or written, or is damaged).
    """
    authority = _Authority.read(directory)
    fresh = authority is None
    authority = authority or _Authority.create(now, ca_days)
    until = now + datetime.timedelta(days=days)
    if until > authority.until:
        raise RequestError(
            f"the authority in {directory} ends on {authority.until:%Y-%m-%d}, before {days} days are over: ask for "
            "fewer --days, or make a new authority in another directory and let hosts trust both (one file may hold "
            "several) until all have their new certificates."
        )
    kept: dict[str, Made] = {}
    for bearer in bearers:
        certificate, key = directory / f"{bearer.file}.pem", directory / f"{bearer.file}.key"
        there = [path for path in (certificate, key) if path.exists()]
        if there and not replace:
            kept[bearer.file] = _kept(bearer, certificate, key, authority)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if fresh:
            authority.write(directory)
        made = [Made(AUTHORITY, "made" if fresh else "kept", (), authority.until)]
        for bearer in bearers:
            if bearer.file in kept:
                made.append(kept[bearer.file])
                continue
            how = "replaced" if (directory / f"{bearer.file}.pem").exists() else "made"
            key_pem, certificate_pem = authority.issue(bearer, now, until)
            _write(directory / f"{bearer.file}.key", key_pem, 0o600)
            _write(directory / f"{bearer.file}.pem", certificate_pem, 0o644)
            made.append(Made(bearer.file, how, (bearer.name, *bearer.addresses), until))
    except OSError as error:
        raise HostError(f"{directory} cannot be written ({error.strerror}): name another directory.") from None
    return made


def names_in(certificate: x509.Certificate) -> tuple[str, ...]:
    """The DNS names and addresses that a certificate is for; its common name where it has neither."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return tuple(str(attribute.value) for attribute in common)
    addresses = [str(address) for address in found.get_values_for_type(x509.IPAddress)]
    return (*found.get_values_for_type(x509.DNSName), *addresses)


@dataclass(frozen=True, slots=True)
class _Authority:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def until(self) -> datetime.datetime:
        return self.certificate.not_valid_after_utc

    @classmethod
    def read(cls, directory: Path) -> _Authority | None:
        """The one that is there; None when there is none."""
        certificate, key = directory / f"{AUTHORITY}.pem", directory / f"{AUTHORITY}.key"
        if not certificate.exists() and not key.exists():
            return None
        return cls(*_pair(certificate, key))

    @classmethod
    def create(cls, now: datetime.datetime, days: int) -> _Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        # The serial number tells two authorities of one fleet apart, while hosts trust both.
        name = _named(f"droveway {now:%Y-%m-%d} {os.urandom(4).hex()}")
        builder = _builder(name, name, key, now, now + datetime.timedelta(days=days))
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_usage(signs=True), critical=True)
        return cls(builder.sign(key, hashes.SHA256()), key)

    def write(self, directory: Path) -> None:
        _write(directory / f"{AUTHORITY}.key", _pem_of(self.key), 0o600)
        _write(directory / f"{AUTHORITY}.pem", self.certificate.public_bytes(serialization.Encoding.PEM), 0o644)

    def issue(self, bearer: Bearer, now: datetime.datetime, until: datetime.datetime) -> tuple[bytes, bytes]:
        """A new key and its certificate, as PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(_named(bearer.name), self.certificate.subject, key, now, until)
        names = [x509.DNSName(bearer.name), *(x509.IPAddress(ipaddress.ip_address(each)) for each in bearer.addresses)]
        uses = [ExtendedKeyUsageOID.SERVER_AUTH, *[ExtendedKeyUsageOID.CLIENT_AUTH] * bearer.calls]
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        for extension, critical in (
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (_usage(signs=False), True),
            (x509.ExtendedKeyUsage(uses), False),
            (x509.SubjectAlternativeName(names), False),
            (issuer, False),
        ):
            builder = builder.add_extension(extension, critical=critical)
        signed = builder.sign(self.key, hashes.SHA256())
        return _pem_of(key), signed.public_bytes(serialization.Encoding.PEM)


def _kept(bearer: Bearer, certificate: Path, key: Path, authority: _Authority) -> Made:
    """What is there already, when it is what was asked for. Raises RequestError, HostError."""
    found, _ = _pair(certificate, key)
    wanted, names = (bearer.name, *bearer.addresses), names_in(found)
    trouble = ""
    if set(names) != set(wanted):
        trouble = f"is for {', '.join(names) or 'nobody'}, and {', '.join(wanted)} was asked for"
    else:
        try:
            found.verify_directly_issued_by(authority.certificate)
        except Exception:  # noqa: BLE001  # another issuer, or a signature that is not its: several classes
            trouble = f"is not of the authority in {certificate.parent}"
    if trouble:
        raise RequestError(f"{certificate} {trouble}: add --replace to make it anew.")
    return Made(bearer.file, "kept", names, found.not_valid_after_utc)


def _pair(certificate: Path, key: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """A certificate and its key from their files. Raises HostError."""
    try:
        read = x509.load_pem_x509_certificate(certificate.read_bytes())
        loaded = serialization.load_pem_private_key(key.read_bytes(), None)
    except FileNotFoundError as error:
        there = key if error.filename == str(certificate) else certificate
        raise HostError(
            f"{there} is there, and {error.filename} is not: put it back, or move both away (a host's: --replace)."
        ) from None
    except (OSError, ValueError, TypeError) as error:
        raise HostError(f"{certificate} or {key} cannot be read ({error}): put them back from a copy.") from None
    if not isinstance(loaded, ec.EllipticCurvePrivateKey) or read.public_key() != loaded.public_key():
        raise HostError(f"{key} is not the key of {certificate}: put the right one back (a host's: --replace).")
    return read, loaded


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    since: datetime.datetime,
    until: datetime.datetime,
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder(subject_name=subject, issuer_name=issuer, public_key=key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(since - _SKEW).not_valid_after(until)
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)


def _usage(*, signs: bool) -> x509.KeyUsage:
    others = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    nothing = dict.fromkeys((*others, "encipher_only", "decipher_only"), False)
    return x509.KeyUsage(digital_signature=not signs, key_cert_sign=signs, crl_sign=signs, **nothing)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _pem_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    plain = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)


def _write(path: Path, text: bytes, mode: int) -> None:
    """Replace the file whole, so that nobody reads half a key."""
    handle, fresh = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(fresh).chmod(mode)
        Path(fresh).replace(path)
    except OSError:
        Path(fresh).unlink(missing_ok=True)
        raise
