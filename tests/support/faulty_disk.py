"""A file system whose flushes can be made slow or made to fail while it is in use.

What is below a folder, passed through by FUSE in a process of its own (`tests.support.fuse`). A
disk that lies about its flushes is not modelled, nor one that loses what it failed to flush.
"""

import ctypes.util
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.wait import until_sync


def unusable() -> str:
    """Return why there is no such file system here; empty when there is."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "there is no /dev/fuse to open"
    if importlib.util.find_spec("mfusepy") is None:
        return "there is no mfusepy (pip install mfusepy)"
    if ctypes.util.find_library("fuse3") is None:
        return "there is no libfuse3 (apt install fuse3)"
    return ""


@dataclass(frozen=True)
class FaultyDisk:
    """A mounted one.

    Args:
        path: Where it is mounted.
        fault: The file that says what is wrong.
    """

    path: Path
    fault: Path

    def slow(self, seconds: float) -> None:
        """Let every flush take so long."""
        self._set(f"slow {seconds}")

    def fail(self, what: str) -> None:
        """Let every `fsync` or `write` fail with EIO."""
        self._set(what)

    def mend(self) -> None:
        """Let all go well again."""
        self._set("")

    def _set(self, text: str) -> None:
        draft = self.fault.with_suffix(".new")
        draft.write_text(text, encoding="ascii")
        draft.replace(self.fault)


@contextmanager
def faulty_disk(folder: Path, path: Path | None = None) -> Iterator[FaultyDisk]:
    """Mount one.

    Args:
        folder: Where its files really are.
        path: Where it is mounted; in the folder by default.
    """
    root, mount = folder / "real", path or folder / "faulty"
    root.mkdir(parents=True)
    mount.mkdir(parents=True, exist_ok=True)
    disk = FaultyDisk(mount, Path(f"{root}.fault"))
    disk.mend()
    process = subprocess.Popen(  # noqa: S603 - our own module
        [sys.executable, "-m", "tests.support.fuse", str(root), str(mount)]
    )
    try:
        until_sync(lambda: os.path.ismount(mount) or process.poll() is not None)
        assert process.poll() is None, "the file system did not start"
        yield disk
    finally:
        disk.mend()
        subprocess.run(["umount", "-l", str(mount)], check=False, capture_output=True)  # noqa: S603, S607
        process.terminate()
        process.wait(10)
