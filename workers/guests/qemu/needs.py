"""What a destination is told beside a guest's shape, so that it can look whether it has the same: a codec. Pure."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from config.errors import RequestError

_Word = Annotated[str, Field(max_length=1024)]
_Count = Annotated[int, Field(ge=0, lt=1 << 64)]


class FileIdentity(BaseModel):
    """Which file a path leads to on one host. `size` in bytes; `machine` is the kernel's name for its boot."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    path: _Word
    machine: _Word
    filesystem: _Word = ""
    #: Of the filesystem, or of the block device itself.
    device: _Count
    inode: _Count
    size: _Count
    block: bool = False
    #: A block device's own name for itself, the same on every host; empty where it has none.
    serial: _Word = ""
    #: Of what is read once (kernel, initrd, firmware): a hash of the contents.
    digest: _Word = ""


class Needs(BaseModel):
    """Files that the guest's QEMU has open, and the features that its processors have."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    files: Annotated[tuple[FileIdentity, ...], Field(max_length=256)] = ()
    features: Annotated[tuple[Annotated[str, Field(max_length=64)], ...], Field(max_length=1024)] = ()

    @classmethod
    def from_json(cls, said: Any) -> Needs:
        """Decode `to_json`; nothing said is no needs. Raises RequestError."""
        try:
            return cls.model_validate({} if said is None else said)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise RequestError(f"what the source says of its files is malformed at {where!r:.80}") from None

    def to_json(self) -> dict[str, Any]:
        """All fields, by name; what is at its default is left out."""
        return self.model_dump(mode="json", exclude_defaults=True)
