"""Every error that an operator can meet, grouped by who must act.

Raise the narrowest class; the message says what happened and what to do next, in one sentence. `reason` is the
machine's word for it (history, metrics, `--json`); `exit_code` is what a script branches on. Foreign errors are turned
into these where they enter (a socket, Redis, a system call), never further in.
"""

from typing import ClassVar


class DrovewayError(Exception):
    """Something that an operator can understand and act on."""

    reason: ClassVar[str] = "internal"
    exit_code: ClassVar[int] = 1


# --- the caller must ask for something else ---------------------------------------------------------------------------


class RequestError(DrovewayError):
    """The request itself is wrong; sending it again will fail again."""

    reason = "invalid-request"
    exit_code = 2


class MessageError(RequestError):
    """A message is malformed, too large, or of a version that this program does not speak."""

    reason = "invalid-message"


# --- the fleet does not allow it now ----------------------------------------------------------------------------------


class RefusedError(DrovewayError):
    """The request is sound, but the fleet as it is now refuses it; `reason` names the rule.

    Shapes: `reason` is a short kebab-case word from the rule that refused (`unknown-guest`, `host-memory`, `busy`…).
    """

    reason = "refused"
    exit_code = 3

    def __init__(self, message: str, reason: str = "refused") -> None:
        super().__init__(message)
        self.reason = reason  # type: ignore[misc]  # one class for all rules: the rule's own word, not a subclass each


# --- an operator must change a host -----------------------------------------------------------------------------------


class SettingsError(DrovewayError):
    """A setting is unknown, missing, or out of range; the message names the key and where it was read."""

    reason = "invalid-settings"
    exit_code = 4


class HostError(DrovewayError):
    """This host lacks something that the operator can give it: a limit, a device, a kernel feature, memory."""

    reason = "host"
    exit_code = 4


class DeviceError(HostError):
    """This host has no RDMA device that can be used (none without pyverbs, either), or the one in use failed."""

    reason = "rdma-device"


class MemoryLockError(HostError):
    """The memory-lock limit (RLIMIT_MEMLOCK) or the host's memory is too small for what must be registered."""

    reason = "memory-lock"


class HostMemoryError(HostError):
    """The guest's memory does not fit where this host keeps it: the RAM directory is full, or the host's memory is."""

    reason = "host-memory"


class NewerReleaseError(HostError):
    """A newer release wrote something down that this one cannot read: this host's Droveway must be upgraded."""

    reason = "version"


# --- something that we talk to is away or misbehaves ------------------------------------------------------------------


class UnreachableError(DrovewayError):
    """Redis or a host's worker did not answer in time."""

    reason = "unreachable"
    exit_code = 5


class PeerError(DrovewayError):
    """The other side of the migration failed, vanished, or said something illegal."""

    reason = "peer"
    exit_code = 6


class PeerRefusedError(PeerError):
    """The other side cannot take part; `reason` is the word for it that the other side gave."""

    def __init__(self, message: str, reason: str = "peer") -> None:
        super().__init__(message)
        self.reason = reason  # type: ignore[misc]  # the peer's own word, as with RefusedError


class PeerLostError(PeerError):
    """The connection to the other side ended before the work did."""

    reason = "peer-lost"


class LinkLostError(PeerLostError):
    """Writes were sent again and again, and the other side, though not known to be gone, confirmed none of them."""

    reason = "link-lost"


class RemoteAccessError(PeerError):
    """The destination refused a write outside what it registered, or under a wrong key."""

    reason = "remote-access"


# --- the migration itself ---------------------------------------------------------------------------------------------


class MigrationFailedError(DrovewayError):
    """The migration ended before the guest was given away: the guest goes on at the source."""

    reason = "migration-failed"
    exit_code = 6


class LocalProtectionError(MigrationFailedError):
    """This side's own device refused to read memory for a write: it was not registered, or under another key."""

    reason = "local-protection"


class StalledError(MigrationFailedError):
    """The guest writes faster than its memory can be moved, and the task said to give up then."""

    reason = "stalled"


class VerifyError(MigrationFailedError):
    """The destination's memory differs from what the source sent."""

    reason = "verify-ram"


class CancelledError(DrovewayError):
    """Somebody cancelled the migration before the guest was given away: the guest goes on at the source."""

    reason = "cancelled"
    exit_code = 7


class UnresolvedError(DrovewayError):
    """The guest was given away and the other side has not confirmed: it waits, paused, for `droveway reconcile`."""

    reason = "unresolved"
    exit_code = 8
