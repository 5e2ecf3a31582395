"""A guest's mappings are found by file identity and must cover its RAM exactly once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from config.errors import HostError
from workers.dirty.mappings import FileIdentity, GuestMapping, Vma, parse_maps, place
from workers.ram import BlockFile, RamBlock

A, B = FileIdentity(1, 10), FileIdentity(1, 11)
MAPS = """\
55d8a0000000-55d8a0001000 r--p 00000000 08:01 123                        /usr/bin/qemu system
7f0000000000-7f0000004000 rw-s 00002000 00:1a 10                         /dev/shm/ram with space
7f1000000000-7f1000002000 rw-p 00000000 00:1a 10                         /dev/shm/ram with space
7f2000000000-7f2000002000 r--s 00000000 00:1a 10                         /dev/shm/ram with space
7f3000000000-7f3000002000 rw-p 00000000 00:00 0
"""


def block(name: str, size: int, page_size: int = 4096) -> BlockFile:
    return BlockFile(RamBlock(name, size, page_size), Path(f"/dev/shm/{name}"))


def test_only_shared_writable_mappings_count():
    assert parse_maps(MAPS) == [Vma(0x7F0000000000, 0x4000, 0x2000, FileIdentity(os.makedev(0, 0x1A), 10))]


def test_pieces_and_blocks_are_laid_end_to_end_whatever_their_addresses():
    vmas = [Vma(0x9000, 0x2000, 0x3000, A), Vma(0x1000, 0x1000, 0, B), Vma(0x20000, 0x3000, 0, A)]
    assert place(vmas, [(block("a", 0x5000), A), (block("b", 0x1000), B)]) == [
        GuestMapping(0x20000, 0, 0x3000, 4096),
        GuestMapping(0x9000, 0x3000, 0x2000, 4096),
        GuestMapping(0x1000, 0x5000, 0x1000, 4096),
    ]


def test_a_mapping_rounded_up_beyond_the_file_is_cut_to_the_block():
    assert place([Vma(0x1000, 0x4000, 0, A)], [(block("a", 0x3000), A)]) == [GuestMapping(0x1000, 0, 0x3000, 4096)]


@pytest.mark.parametrize(
    ("vmas", "complaint"),
    [
        ([], "0 of 16384 bytes"),
        ([Vma(0x1000, 0x3000, 0, A)], "12288 of 16384 bytes"),
        ([Vma(0x1000, 0x4000, 0, FileIdentity(2, 10))], "0 of 16384 bytes"),  # same inode number on another tmpfs
        ([Vma(0x1000, 0x4000, 0, A), Vma(0x9000, 0x4000, 0, A)], "more than once"),
        ([Vma(0x1000, 0x4000, 0, A), Vma(0x9000, 0x1000, 0x3000, A)], "more than once"),
        ([Vma(0x1000, 0x1000, 0, A), Vma(0x9000, 0x2000, 0x2000, A)], "gaps"),
    ],
)
def test_memory_that_cannot_be_followed_is_refused(vmas, complaint):
    with pytest.raises(HostError, match=complaint):
        place(vmas, [(block("a", 0x4000), A)])
