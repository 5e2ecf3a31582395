"""TLS 1.3 with certificates on both sides: the CA says "one of our hosts", the fingerprint in the offer says which."""

from __future__ import annotations

import hashlib
import re
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from config.errors import PeerError, SettingsError

_FIRST_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files of this host: its certificate (chain), the key of it, and the CA that signs every host's."""

    certificate: Path
    key: Path
    ca: Path


class TlsIdentity:
    """This host's certificate, loaded; both sides of a connection are wrapped with it."""

    def __init__(self, files: TlsFiles) -> None:
        """Raises SettingsError when a file is missing or does not fit the others."""
        try:
            text = files.certificate.read_text()
            first = _FIRST_CERTIFICATE.search(text)
            self.fingerprint = hashlib.sha256(ssl.PEM_cert_to_DER_cert(first[0] if first else text)).hexdigest()
            self._server = _context(ssl.PROTOCOL_TLS_SERVER, files)
            self._client = _context(ssl.PROTOCOL_TLS_CLIENT, files)
        except (OSError, ValueError) as error:
            names = f"{files.certificate}, {files.key}, {files.ca}"
            raise SettingsError(f"the TLS files {names} cannot be used ({error}): check the tls settings") from None
        # Tickets are for resuming; every connection here is made once.
        self._server.num_tickets = 0

    def wrap(self, connection: socket.socket, *, accepted: bool) -> ssl.SSLSocket:
        """Take over the connection; nothing is sent before `shake_hands`."""
        context = self._server if accepted else self._client
        return context.wrap_socket(connection, server_side=accepted, do_handshake_on_connect=False)

    def shake_hands(self, connection: ssl.SSLSocket) -> None:
        """Do the handshake within the socket's time-out. Raises PeerError (TLS failed), OSError (the peer left)."""
        try:
            connection.do_handshake()
        except ssl.SSLCertVerificationError as error:
            raise PeerError(f"the other side's certificate does not verify: {error.verify_message}") from None
        except ssl.SSLError as error:
            raise PeerError(f"the TLS handshake with the other side failed: {error.reason}") from None

    def shows(self, connection: ssl.SSLSocket, fingerprint: str | None) -> bool:
        """Whether the peer's certificate, which the CA vouches for, is the one with this fingerprint."""
        return hashlib.sha256(connection.getpeercert(binary_form=True) or b"").hexdigest() == fingerprint


def _context(protocol: int, files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # The offer's fingerprint names the one certificate that is right, which is narrower than any host name.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(files.certificate, files.key)
    context.load_verify_locations(files.ca)
    return context
