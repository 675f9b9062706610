"""The C allocator of this process.

By itself glibc gives freed memory back to the system once 128 KiB to 64 MiB of it lie at the end of
the heap, and the next large message has it made anew, page by page: half of the processor time of
a tensor of 5 MiB. A service has room for the next message where the last one was.

Source: mallopt(3); both must be set, as setting one ends that glibc adapts the other.
"""

import contextlib
import ctypes


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
SEPARATE_BYTES = 32 * 1024 * 1024
"""What is larger is asked of the system and given back by itself; the most that glibc takes."""


def keep_freed(bytes_max: int) -> None:
    """Have the allocator keep freed memory for what comes next, where it can (glibc).

    Args:
        bytes_max: At the end of a heap, below 2 GiB; 0 leaves the allocator as it is.
    """
    if bytes_max:
        with contextlib.suppress(AttributeError):
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(_TRIM_THRESHOLD, bytes_max)
            mallopt(_MMAP_THRESHOLD, SEPARATE_BYTES)
