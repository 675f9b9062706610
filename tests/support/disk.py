"""A disk whose power can be cut: what was not synced is gone, as on a real one.

A file system in a file, mounted over a loop device; cutting the power is the file system's own
shutdown without a flush. Torn sectors and disks that lie about flushes are not modelled.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self


NEEDED = ("fsck.ext4", "mkfs.ext4", "mount", "umount", "xfs_io")
FSCK_MENDED = 1
"""Exit status: errors were there and are mended. Source: fsck(8)."""


def unusable() -> str:
    """Return why no such disk can be made here; empty when one can."""
    if os.geteuid() != 0:
        return "mounting needs root"
    missing = [name for name in NEEDED if shutil.which(name) is None]
    return f"missing: {', '.join(missing)} (apt install xfsprogs)" if missing else ""


def cannot_mount() -> str:
    """Return why nothing can be mounted here; empty when it can."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            _run("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder)
            _run("umount", folder)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"mounting is not possible here: {error}"
    return ""


@dataclass
class Disk:
    """A mounted file system.

    Args:
        folder: Where its image and its mount point go.
        size_mib: How large it is.
    """

    folder: Path
    size_mib: int = 512

    @property
    def path(self) -> Path:
        """Where it is mounted."""
        return self.folder / "disk"

    def __enter__(self) -> Self:
        """Make and mount it."""
        self.path.mkdir(parents=True)
        with self._image.open("wb") as image:
            image.truncate(self.size_mib * 1024 * 1024)
        _run("mkfs.ext4", "-q", str(self._image))
        self._mount()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Unmount and remove it."""
        _run("umount", str(self.path))
        self._image.unlink()

    def cut(self) -> None:
        """Cut the power: nothing that was not synced will be there."""
        _run("xfs_io", "-x", "-c", "shutdown", str(self.path))

    def restore(self) -> None:
        """Bring it back with what it has; nobody may have files open on it."""
        _run("umount", str(self.path))
        # As at every boot: replays the journal and mends what the cut left half done.
        command = ["fsck.ext4", "-p", str(self._image)]
        checked = subprocess.run(command, check=False, capture_output=True)  # noqa: S603
        assert checked.returncode <= FSCK_MENDED, f"fsck.ext4 gives up: {checked.returncode}"
        self._mount()

    @property
    def _image(self) -> Path:
        return self.folder / "disk.img"

    def _mount(self) -> None:
        _run("mount", "-o", "loop", str(self._image), str(self.path))


@contextmanager
def small_disk(path: Path, size_mib: int) -> Iterator["Ballast"]:
    """Mount a file system of its own size; it can be filled and given room again."""
    path.mkdir(parents=True)
    _run("mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "tmpfs", str(path))
    try:
        yield Ballast(path)
    finally:
        _run("umount", str(path))


@dataclass
class Ballast:
    """A file that takes up room on a disk.

    Args:
        folder: Where it goes.
    """

    folder: Path

    def fill(self, free_bytes: int) -> None:
        """Take all room but this."""
        size = shutil.disk_usage(self.folder).free - free_bytes
        with self._path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)

    def drop(self) -> None:
        """Give the room back."""
        self._path.unlink()

    @property
    def _path(self) -> Path:
        return self.folder / "ballast"


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)  # noqa: S603 - fixed programs
