"""The tcp transport: RDMA's one-sided writes on machines without an RDMA card, over plain or TLS connections."""

from workers.transports.tcp.control import Control, ControlSettings
from workers.transports.tcp.endpoint import TcpEndpoint, TcpSettings
from workers.transports.tcp.tls import TlsFiles

__all__ = ["Control", "ControlSettings", "TcpEndpoint", "TcpSettings", "TlsFiles"]
