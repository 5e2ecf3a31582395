"""The shape of a QEMU guest: what `vm.toml` may say, and what a source tells a destination. Pure.

No string in it can smuggle an option into QEMU's command line: names are of few characters, and paths go there as JSON.
"""

from __future__ import annotations

import tomllib
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self
from uuid import UUID, uuid4

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from config.errors import RequestError
from config.names import check_groups, check_labels, check_name, validator
from config.units import BYTES

#: Models that mean whatever the host's processor can do: two hosts' are not the same, and their names tell nothing.
_ANY_MODEL = frozenset({"host", "max", "base"})
_WORD = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


def _absolute(value: str) -> str:
    if not PurePosixPath(value).is_absolute() or "\0" in value:
        raise ValueError("give an absolute path, which means the same on every host")
    return value


def _size(value: object) -> object:
    return BYTES.whole(value) if isinstance(value, str) else value


AbsolutePath = Annotated[str, Field(max_length=1024), AfterValidator(_absolute)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Disk(_Part):
    """A virtio disk on storage that every host reaches under the same path. `cache` and `aio` as QEMU's -drive."""

    path: AbsolutePath
    format: Literal["raw", "qcow2"] = "raw"
    cache: Literal["none", "writeback", "writethrough", "directsync"] = "none"
    aio: Literal["threads", "native", "io_uring"] = "threads"
    read_only: bool = False

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.aio == "native" and self.cache not in ("none", "directsync"):
            raise ValueError(f"aio native goes past the page cache: use cache none or directsync, not {self.cache}")
        return self


class Nic(_Part):
    """A virtio network card. Without `tap`, the name of a tap device that each host has, QEMU's own user network."""

    mac: Annotated[str, Field(pattern=r"^[0-9a-f]{2}(:[0-9a-f]{2}){5}$")]
    tap: Annotated[str, Field(pattern=_WORD, max_length=15)] | None = None


class QemuGuestSpec(_Part):
    """One virtual machine. `memory` in bytes, whole 8 KiB; in a file a size such as "2G" will do.

    Only `memory_backend` file, a shared file, can be moved from outside; anonymous memory is left to QEMU to move.
    `machine` may be an alias (q35): the first host resolves it, since the next one's may mean another version.
    """

    name: Annotated[str, AfterValidator(validator(partial(check_name, "guest")))]
    memory: Annotated[int, BeforeValidator(_size), Field(ge=1 << 20, le=1 << 46, multiple_of=8 << 10)]
    memory_backend: Literal["file", "anonymous"] = "file"
    vcpus: Annotated[int, Field(ge=1, le=1024)] = 1
    machine: Annotated[str, Field(pattern=_WORD, max_length=64)] = "q35"
    accel: Literal["kvm", "tcg"] = "kvm"
    cpu: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._,=+-]*$", max_length=256)] = "max"
    uuid: UUID = Field(default_factory=uuid4)
    disks: Annotated[tuple[Disk, ...], Field(max_length=20)] = ()
    nics: Annotated[tuple[Nic, ...], Field(max_length=8)] = ()
    balloon: bool = False
    #: QEMU's id of the memory backend, and the name of the RAM block that comes of it.
    ram_id: Annotated[str, Field(pattern=_WORD, max_length=64)] = "ram"
    firmware: AbsolutePath | None = None
    kernel: AbsolutePath | None = None
    initrd: AbsolutePath | None = None
    append: Annotated[str, Field(max_length=2048, pattern=r"^[^\x00]*$")] = ""
    #: No two guests with a word in common are planned onto one host.
    anti_affinity: Annotated[tuple[str, ...], BeforeValidator(validator(check_groups))] = ()
    #: Labels that its host must have, each "key=value".
    needs: Annotated[tuple[str, ...], BeforeValidator(validator(check_labels))] = ()

    @property
    def cpu_model(self) -> str:
        """The processor model by its name in QEMU; "": what the host has, which cannot be compared by name."""
        model = self.cpu.partition(",")[0]
        return "" if model in _ANY_MODEL else model

    @classmethod
    def from_file(cls, path: Path) -> QemuGuestSpec:
        """What a TOML file says. Raises RequestError with every mistake in it."""
        try:
            said = tomllib.loads(path.read_text("utf-8"))
        except OSError as error:
            raise RequestError(f"{path} cannot be read ({error.strerror})") from None
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise RequestError(f"{path} is not TOML: {error}") from None
        return cls.from_json(said, str(path))

    @classmethod
    def from_json(cls, said: object, where: str = "the shape of a QEMU guest") -> QemuGuestSpec:
        """Decode `to_json`. Raises RequestError with every mistake in it."""
        try:
            return cls.model_validate(said)
        except ValidationError as error:
            wrong = "; ".join(
                f"{'.'.join(map(str, each['loc'])) or 'it'}: {each['msg'].removeprefix('Value error, ')}"
                for each in error.errors(include_url=False, include_input=False)
            )
            raise RequestError(f"{where} is not right: {wrong}") from None

    def to_json(self) -> dict[str, Any]:
        """All fields, by name."""
        return self.model_dump(mode="json")
