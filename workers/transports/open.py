"""The transports that this host can use, opened for one attempt; the only place that knows them all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from config.capabilities import Capabilities, MigrationCapability, MigrationParameters, TransportChoice
from config.errors import DeviceError, HostError
from config.settings import Settings
from workers.pairing.contract import Side
from workers.ram import Ram
from workers.transports.contract import Endpoint
from workers.transports.tcp import TcpEndpoint, TcpSettings, TlsFiles
from workers.transports.verbs import VerbsEndpoint, VerbsSettings
from workers.transports.verbs.ports import all_ports

_IN_THE_CLEAR = "tls is set, and RDMA writes are not encrypted: ask for transport=verbs to accept that"


def kinds() -> tuple[str, ...]:
    """What this host could carry memory over now, best first."""
    return ("verbs", "tcp") if all_ports() else ("tcp",)


@dataclass(frozen=True, slots=True)
class Opened:
    """One endpoint per transport that can be used, best first, and for each other that was wanted, why it cannot."""

    endpoints: Mapping[str, Endpoint]
    unavailable: Mapping[str, str]


def open_endpoints(
    side: Side, settings: Settings, capabilities: Capabilities, parameters: MigrationParameters, ram: Ram
) -> Opened:
    """What this host has and the task allows. The caller closes the endpoints. Raises HostError, SettingsError."""
    endpoints: dict[str, Endpoint] = {}
    unavailable: dict[str, str] = {}
    asked = parameters.transport
    if asked is not TransportChoice.TCP:
        try:
            if asked is TransportChoice.AUTO and settings.tls.enabled:
                raise DeviceError(_IN_THE_CLEAR)
            endpoints["verbs"] = _verbs(side, settings, capabilities, parameters, ram)
        except HostError as error:
            # Where nobody asked for RDMA, having none is no news.
            if asked is TransportChoice.VERBS or all_ports():
                unavailable["verbs"] = str(error)
    if asked is not TransportChoice.VERBS:
        try:
            endpoints["tcp"] = _tcp(side, settings, capabilities, parameters, ram)
        except BaseException:
            for endpoint in endpoints.values():
                endpoint.close()
            raise
    return Opened(endpoints, unavailable)


def _tcp(
    side: Side, settings: Settings, capabilities: Capabilities, parameters: MigrationParameters, ram: Ram
) -> Endpoint:
    return TcpEndpoint(
        ram,
        TcpSettings(
            *_meeting(side, settings),
            channels=parameters.channels,
            lock=MigrationCapability.RDMA_PIN_ALL in capabilities,
        ),
    )


def _verbs(
    side: Side, settings: Settings, capabilities: Capabilities, parameters: MigrationParameters, ram: Ram
) -> Endpoint:
    rdma = settings.rdma
    return VerbsEndpoint(
        ram,
        VerbsSettings(
            *_meeting(side, settings),
            channels=parameters.channels,
            device=rdma.device,
            port=rdma.port,
            gid_index=rdma.gid_index,
            address=settings.host.advertised,
            on_demand_paging=MigrationCapability.ON_DEMAND_PAGING in capabilities,
        ),
    )


def _meeting(
    side: Side, settings: Settings
) -> tuple[Literal["source", "destination"], str, tuple[int, int], tuple[str, ...], TlsFiles | None]:
    """The fields of ControlSettings, which both kinds' settings begin with."""
    tls, host = settings.tls, settings.host
    files = None
    if tls.certificate and tls.key and tls.ca:
        files = TlsFiles(certificate=tls.certificate, key=tls.key, ca=tls.ca)
    return side.value, str(host.address), host.ports, (host.advertise,) if host.advertise else (), files
