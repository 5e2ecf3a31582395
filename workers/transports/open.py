"""The transports that this host can use, opened for one attempt; the only place that knows them all."""

from __future__ import annotations

from config.capabilities import MigrationParameters, TransportChoice
from config.settings import Settings
from workers.pairing.contract import Side
from workers.ram import Ram
from workers.transports.contract import Endpoint
from workers.transports.tcp import TcpEndpoint, TcpSettings, TlsFiles

#: What this release can carry memory over, on any host.
KINDS = ("tcp",)


def open_endpoints(side: Side, settings: Settings, parameters: MigrationParameters, ram: Ram) -> dict[str, Endpoint]:
    """One endpoint per transport that this host has and the task allows, best first. The caller closes them."""
    wanted = KINDS if parameters.transport is TransportChoice.AUTO else (parameters.transport.value,)
    return {kind: _OPEN[kind](side, settings, parameters, ram) for kind in wanted if kind in _OPEN}


def _tcp(side: Side, settings: Settings, parameters: MigrationParameters, ram: Ram) -> Endpoint:
    tls = settings.tls
    files = None
    if tls.certificate and tls.key and tls.ca:
        files = TlsFiles(certificate=tls.certificate, key=tls.key, ca=tls.ca)
    host = settings.host
    return TcpEndpoint(
        ram,
        TcpSettings(
            role=side.value,
            channels=parameters.channels,
            listen=str(host.address),
            ports=host.ports,
            advertise=(host.advertise,) if host.advertise else (),
            tls=files,
        ),
    )


_OPEN = {"tcp": _tcp}
