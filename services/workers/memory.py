"""How much memory a process really holds, and giving back to the system what was freed.

Source: proc(5), `RssAnon` and `RssShmem`: what a process would give back by ending; pages of
libraries that others map too are not counted. malloc_trim(3).
"""

import contextlib
import ctypes
from pathlib import Path


MIB = 1024 * 1024
_FIELDS = (b"RssAnon:", b"RssShmem:")
_STATUS = Path("/proc/self/status")
_libc = ctypes.CDLL(None)


def held_bytes(pid: int | None = None) -> int:
    """Return the memory that a process holds for itself.

    Args:
        pid: Of the process; this one if None.

    Returns:
        Bytes; 0 where the system does not say: the process is gone, or this is no Linux.
    """
    path = _STATUS if pid is None else Path(f"/proc/{pid}/status")
    try:
        text = path.read_bytes()
    except OSError:
        return 0
    return sum(
        int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(_FIELDS)
    )


def give_back() -> None:
    """Have the allocator return freed pages to the system, where it can (glibc)."""
    with contextlib.suppress(AttributeError):
        _libc.malloc_trim(0)
