"""The policies, made from a choice; the only place that knows them all."""

from __future__ import annotations

from workers.registration.choose import Choice
from workers.registration.contract import RegistrationPolicy
from workers.registration.dynamic import Dynamic
from workers.registration.pin_all import PinAll
from workers.registration.registrar import Registrar
from workers.registration.windowed import Windowed


def make_policy(choice: Choice, registrar: Registrar, chunk_size: int) -> RegistrationPolicy:
    """The policy that was chosen, for one migration. `chunk_size` in bytes."""
    if choice.policy == Windowed.kind:
        return Windowed(registrar, chunk_size, choice.window)
    return {policy.kind: policy for policy in (PinAll, Dynamic)}[choice.policy](registrar, chunk_size)
