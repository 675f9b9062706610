"""How much memory a process really holds, and giving back to the system what was freed.

Source: proc(5), `RssAnon` and `RssShmem`: what a process would give back by ending; pages of
libraries that others map too are not counted. malloc_trim(3).
"""

import contextlib
import ctypes
from dataclasses import dataclass
from pathlib import Path


MIB = 1024 * 1024
_FIELDS = (b"RssAnon:", b"RssShmem:")
_STATUS = Path("/proc/self/status")
_libc = ctypes.CDLL(None)


@dataclass(frozen=True)
class Size:
    """Bytes of a processor's memory, and of the memory of its GPUs."""

    host: int = 0
    device: int = 0

    def __add__(self, other: "Size") -> "Size":
        """Return both together."""
        return Size(self.host + other.host, self.device + other.device)

    def __sub__(self, other: "Size") -> "Size":
        """Return the difference; either part may be negative."""
        return Size(self.host - other.host, self.device - other.device)

    @property
    def fits(self) -> bool:
        """Whether this, what is too much, is nothing."""
        return self.host <= 0 and self.device <= 0

    def covers(self, over: "Size") -> bool:
        """Tell whether freeing this much would do against what is too much."""
        return (over - self).fits

    def helps(self, over: "Size") -> bool:
        """Tell whether freeing this much is a step against what is too much."""
        return (over.host > 0 and self.host > 0) or (over.device > 0 and self.device > 0)


NOTHING = Size()


@dataclass(frozen=True)
class Budget:
    """How much there may be of each memory; None for no limit."""

    host: int | None = None
    device: int | None = None

    def __bool__(self) -> bool:
        """Whether there is any limit."""
        return self.host is not None or self.device is not None

    def over(self, size: Size) -> Size:
        """Return by how much a size exceeds what may be; negative or 0 where it does not."""
        return Size(
            0 if self.host is None else size.host - self.host,
            0 if self.device is None else size.device - self.device,
        )


UNLIMITED = Budget()


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
