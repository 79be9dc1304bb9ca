"""Payloads are written by strangers: none of their bytes is ever taken for the log's own."""

from __future__ import annotations

import random
from zlib import crc32

from faults import SimDisk
from hypothesis import given, settings
from hypothesis import strategies as st
from journal_harness import DIRECTORY, Owner, found_on

from ciphermq.journal.format import (
    BLOCK_SIZE,
    GROUP_SIZE,
    RECORD_SIZE,
    Entry,
    SegmentHeader,
    encode_group,
    new_header,
)
from ciphermq.journal.segments import list_segments, segment_path
from ciphermq.limits import KIB


def forged_groups(header: SegmentHeader, sequence: int) -> bytes:
    """Good groups of `header`'s segment, as they would be at many offsets."""
    entry = Entry(1 << 40, 1, b"forged", b"forged", crc32(b"forged"), False)
    return b"".join(
        b"".join(encode_group(header, offset, sequence, [entry])[0])
        for offset in range(BLOCK_SIZE, BLOCK_SIZE + 40)
    )


def torn_after(payload: bytes) -> None:
    """Write `payload`, tear its group at every 97th byte: it is cut, not damage, not replayed."""
    disk = SimDisk()
    owner = Owner(disk, segment_size=256 * KIB)
    owner.append(1, b"before")
    owner.drain()
    before = list(owner.written)
    owner.append(1, b"hostile", payload)
    owner.drain()
    path = segment_path(DIRECTORY, list_segments(disk, DIRECTORY)[-1])
    location = owner.located[owner.confirmed]
    assert location is not None
    start = location.offset
    for size in range(start - 60, start + len(payload), 97):
        found = disk.after_crash("all")
        del found.content(path)[size:]
        assert found_on(found) == before
    for lost in range(0, len(payload), 499):  # later sectors arrived, an earlier one did not
        found = disk.after_crash("all")
        content = found.content(path)
        content[start + lost : start + lost + 512] = bytes(len(content[start + lost :][:512]))
        if bytes(content) != disk.contents()[path]:
            assert found_on(found) == before
    # The header of its group was lost: what the payload holds would stand right behind bad bytes.
    group = start - len(b"hostile") - RECORD_SIZE - GROUP_SIZE
    for lost in (8, GROUP_SIZE, start - group):
        found = disk.after_crash("all")
        found.content(path)[group : group + lost] = bytes(lost)
        assert found_on(found) == before
    owner.journal.close()
    assert found_on(disk)[-1][3] == payload


def test_groups_of_another_segment_with_known_secret_are_nothing() -> None:
    torn_after(forged_groups(new_header(1, 1), 3))


def test_copies_of_this_segments_own_bytes_are_nothing_elsewhere() -> None:
    """Even one who can read the disk gains nothing by copying: offsets enter the checksums."""
    disk = SimDisk()
    owner = Owner(disk, segment_size=256 * KIB)
    for i in range(5):
        owner.append(1, b"first %d" % i, b"x" * 200)
        owner.drain()
    path = segment_path(DIRECTORY, 1)
    copied = disk.contents()[path]
    before = list(owner.written)
    owner.append(1, b"hostile", copied)
    owner.drain()
    whole = disk.contents()[path]
    location = owner.located[owner.confirmed]
    assert location is not None
    for size in range(location.offset, len(whole), 101):
        found = disk.after_crash("all")
        del found.content(path)[size:]
        assert found_on(found) == before


def test_zeros_and_noise_are_nothing() -> None:
    torn_after(bytes(20_000))
    torn_after(random.Random(5).randbytes(20_000))


@settings(max_examples=30, deadline=None)
@given(st.binary(min_size=1, max_size=3000))
def test_no_payload_is_mistaken_for_the_log(payload: bytes) -> None:
    torn_after(payload)
