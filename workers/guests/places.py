"""Where a guest lies on its host: a directory of its own below the state directory, and a RAM file."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from config.errors import HostError, RefusedError


def make_directory(directory: Path) -> None:
    """A guest's own. Raises RefusedError (`guest-exists`), HostError."""
    try:
        directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.mkdir(mode=0o700)
    except FileExistsError:
        raise RefusedError(
            f"a guest named {directory.name} is on this host already: stop it, or choose another name", "guest-exists"
        ) from None
    except OSError as error:
        raise HostError(f"{directory} cannot be made ({error.strerror}): give this user the state directory") from None


def ram_path(ram_dir: Path, directory: Path) -> Path:
    """Named after guest and host: several hosts may share one machine, and its /dev/shm."""
    host = hashlib.sha256(os.fsencode(directory.parent)).hexdigest()[:12]
    return ram_dir.resolve() / f"droveway-{host}-{directory.name}.ram"


def make_ram(path: Path, size: int, *, used: int) -> None:
    """An empty RAM file of `size` bytes, all holes, of which `used` will be filled. Raises HostError."""
    try:
        free = os.statvfs(path.parent)
        if (available := free.f_bavail * free.f_frsize) < used:
            raise HostError(
                f"this guest needs {used} bytes in {path.parent}, which has {available} left: "
                "make room, enlarge it, or choose another RAM directory"
            )
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise HostError(f"the RAM file {path} is there already, left by an earlier guest: remove it first") from None
    except OSError as error:
        raise HostError(
            f"the RAM file {path} cannot be made ({error.strerror}): choose another RAM directory"
        ) from None
    try:
        os.ftruncate(descriptor, size)
    except OSError as error:
        path.unlink()
        raise HostError(f"the RAM file {path} cannot have {size} bytes ({error.strerror})") from None
    finally:
        os.close(descriptor)


def last_line(log: Path) -> str:
    """The last thing that a guest's process said."""
    lines = log.read_text("utf-8", "replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "it ended without a word")
