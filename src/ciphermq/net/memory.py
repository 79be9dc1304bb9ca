"""What a process that moves batches needs of the C library's memory."""

from __future__ import annotations

import functools

from ciphermq import limits


@functools.cache
def keep_freed_memory() -> None:
    """Have freed memory kept for the next batch, instead of given back to the system.

    glibc gives back what is free at the end of its heap as soon as that is twice the largest block
    ever freed (mallopt(3), M_MMAP_THRESHOLD): with batches of some 100 KiB, nearly every batch,
    whose pages the system then clears and maps anew, which takes as long as to encrypt them. One
    large block, freed without ever being touched, moves that mark; elsewhere it does no harm.
    """
    bytes(limits.KEPT_MEMORY)
