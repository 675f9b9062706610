"""The process behind `tests.support.faulty_disk`: `python -m tests.support.fuse ROOT MOUNT`.

The file `ROOT.fault` says what is wrong: nothing, `slow SECONDS`, `fsync` (EIO) or `write` (EIO).
"""

import contextlib
import errno
import os
import sys
import time
from pathlib import Path
from typing import Any

import mfusepy as fuse
from typing_extensions import override


STAT = ("st_atime", "st_ctime", "st_gid", "st_mode", "st_mtime", "st_nlink", "st_size", "st_uid")
STATVFS = (
    "f_bavail",
    "f_bfree",
    "f_blocks",
    "f_bsize",
    "f_favail",
    "f_ffree",
    "f_files",
    "f_flag",
    "f_frsize",
    "f_namemax",
)


class PassThrough(fuse.Operations):
    """Every call goes to the file below, flushes and writes past the fault.

    Args:
        root: Where the files really are.
    """

    use_ns = True

    def __init__(self, root: str) -> None:
        self._root = root

    def _fault(self) -> str:
        with contextlib.suppress(OSError):
            return Path(f"{self._root}.fault").read_text(encoding="ascii")
        return ""

    @override
    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        """Return a file's attributes."""
        found = os.lstat(self._root + path)
        facts = {name: getattr(found, name) for name in STAT}
        times = ("st_atime", "st_ctime", "st_mtime")
        return facts | {name: getattr(found, f"{name}_ns") for name in times}

    @override
    def statfs(self, path: str) -> dict[str, int]:
        """Return the file system's."""
        found = os.statvfs(self._root + path)
        return {name: getattr(found, name) for name in STATVFS}

    @override
    def readdir(self, path: str, fh: int) -> list[str]:
        """List a folder."""
        return [".", "..", *os.listdir(self._root + path)]

    @override
    def mkdir(self, path: str, mode: int) -> int:
        """Make a folder."""
        os.mkdir(self._root + path, mode)
        return 0

    @override
    def rmdir(self, path: str) -> int:
        """Remove a folder."""
        os.rmdir(self._root + path)
        return 0

    @override
    def unlink(self, path: str) -> int:
        """Remove a file."""
        os.unlink(self._root + path)
        return 0

    @override
    def rename(self, old: str, new: str) -> int:
        """Rename."""
        os.rename(self._root + old, self._root + new)
        return 0

    @override
    def chmod(self, path: str, mode: int) -> int:
        """Change the mode."""
        os.chmod(self._root + path, mode)
        return 0

    @override
    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        """Cut a file."""
        os.truncate(self._root + path, length)
        return 0

    @override
    def utimens(self, path: str, times: Any = None) -> int:
        """Set times, nanoseconds."""
        os.utime(self._root + path, ns=times)
        return 0

    @override
    def open(self, path: str, flags: int) -> int:
        """Open a file; the kernel seeks for appends."""
        return os.open(self._root + path, flags & ~os.O_APPEND)

    @override
    def create(self, path: str, mode: int, fi: Any = None) -> int:
        """Make a file."""
        return os.open(self._root + path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, mode)

    @override
    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        """Read."""
        return os.pread(fh, size, offset)

    @override
    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        """Write, unless writes fail."""
        if self._fault() == "write":
            raise fuse.FuseOSError(errno.EIO)
        return os.pwrite(fh, data, offset)

    @override
    def flush(self, path: str, fh: int) -> int:
        """Do nothing at a close: it is no fsync."""
        return 0

    @override
    def release(self, path: str, fh: int) -> int:
        """Close."""
        os.close(fh)
        return 0

    @override
    def fsync(self, path: str, datasync: int, fh: int) -> int:
        """Flush, late or not at all when so told."""
        fault = self._fault()
        if fault == "fsync":
            raise fuse.FuseOSError(errno.EIO)
        if fault.startswith("slow"):
            time.sleep(float(fault.split()[1]))
        os.fsync(fh)
        return 0


if __name__ == "__main__":
    fuse.FUSE(PassThrough(sys.argv[1]), sys.argv[2], foreground=True, nothreads=False)
