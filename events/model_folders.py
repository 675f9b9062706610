"""A model's files on disk: read without following any link, written whole or not at all.

A folder that is pushed may come from anywhere: a link in it would send a file of the machine it is
pushed from. A folder that is fetched is named by its content and appears at once.
"""

import asyncio
import contextlib
import hashlib
import mmap
import os
import secrets
import shutil
import stat
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from events.repository import ModelRepository
from schemas.artefacts import check_content, check_path
from schemas.errors import DataLoss, InvalidArgument
from schemas.onnx_file import OnnxSummary, examine
from schemas.repository import ModelFile


DRAFT = ".draft-"
LEFT_S_MAX = 3600.0
"""A folder that nobody knows and that is older than this has lost its owner."""
_PLAIN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def plain_files(root: Path) -> list[str]:
    """Return the paths of all files below a folder, but of those whose name begins with a dot.

    Raises:
        InvalidArgument: One is a link, hard or symbolic, or no plain file; or there is no folder.
    """
    found: list[str] = []
    if not root.is_dir():
        raise InvalidArgument(f"there is no folder '{root.name}'")
    for folder, folders, files, handle in os.fwalk(root, follow_symlinks=False):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in (*folders, *sorted(files)):
            path = (Path(folder) / name).relative_to(root).as_posix()
            if name.startswith("."):
                continue
            mode = os.stat(name, dir_fd=handle, follow_symlinks=False)
            if stat.S_ISDIR(mode.st_mode):
                continue
            _check_plain(path, mode)
            found.append(path)
    return found


def open_plain(root: Path, path: str) -> BinaryIO:
    """Open a file below a folder; no part of the path may be a link.

    Raises:
        InvalidArgument: It is no plain file there.
    """
    *folders, name = check_path(path).split("/")
    with contextlib.ExitStack() as stack:
        handle = _opened(stack, root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for folder in folders:
                handle = _opened(stack, folder, _FOLDER, handle)
            file = os.open(name, _PLAIN, dir_fd=handle)
        except OSError as error:
            raise InvalidArgument(f"'{path}' is no plain file: {error.strerror}") from error
    try:
        _check_plain(path, os.fstat(file))
    except InvalidArgument:
        os.close(file)
        raise
    return os.fdopen(file, "rb")


async def fetch(
    repository: ModelRepository, tenant: str, files: Iterable[ModelFile], folder: Path
) -> None:
    """Write files below a new folder, each checked against its digest.

    Raises:
        NotFound: A part is not there.
        DataLoss: The parts are not the file.
        InvalidArgument: A path leads elsewhere.
        StoreUnavailable: The store does not answer.
        OSError: The folder cannot be written.
    """
    for file in files:
        out = await asyncio.to_thread(_Writer, folder / check_path(file.path))
        try:
            for part in file.parts:
                await asyncio.to_thread(out.add, await repository.get_part(tenant, part))
                if out.size > file.size_bytes:
                    break
        finally:
            await asyncio.to_thread(out.close)
        out.check(file)


def write_file(folder: Path, file: ModelFile, parts: Iterable[bytes]) -> None:
    """Write one file below a new folder, checked against its digest.

    Raises:
        DataLoss: The parts are not the file.
        InvalidArgument: Its path leads elsewhere.
        OSError: It cannot be written.
    """
    out = _Writer(folder / check_path(file.path))
    try:
        for part in parts:
            out.add(part)
    finally:
        out.close()
    out.check(file)


class _Writer:
    """Writes one file that must not be there yet."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._file = open(os.open(path, _NEW, 0o600), "wb")  # noqa: PTH123, SIM115 - the flags; `close`
        self.digest = hashlib.sha256()
        self.size = 0

    def add(self, data: bytes) -> None:
        """Append a part."""
        self.size += len(data)
        self.digest.update(data)
        self._file.write(data)

    def check(self, file: ModelFile) -> None:
        """Compare what was written with what it should be.

        Raises:
            DataLoss: It is something else.
        """
        if (self.size, self.digest.hexdigest()) != (file.size_bytes, file.sha256):
            raise DataLoss(f"the parts of '{file.path}' are not the file: its digest differs")

    def close(self) -> None:
        """Leave it on the disk."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        finally:
            self._file.close()


def check_folder(folder: Path, files: Iterable[ModelFile]) -> None:
    """Refuse files whose content is not safe to load. Slow: call it in a thread.

    Raises:
        InvalidArgument: Names the file, and says why.
    """
    for file in files:
        with open_plain(folder, file.path) as opened:
            check_content(file.path, _mapped(opened))


def signature(folder: Path, path: str) -> OnnxSummary:
    """Return what an ONNX file says that it takes and gives. Slow.

    Raises:
        InvalidArgument: It is none, or not safe to load.
    """
    with open_plain(folder, path) as opened:
        return examine(_mapped(opened))


def is_whole(folder: Path, files: Iterable[ModelFile]) -> bool:
    """Tell whether a fetched folder still holds what it was fetched as. Slow."""
    try:
        for file in files:
            with open_plain(folder, file.path) as opened:
                digest = hashlib.file_digest(opened, "sha256").hexdigest()  # type: ignore[arg-type] # a BufferedReader
                if digest != file.sha256:
                    return False
    except InvalidArgument:
        return False
    return True


@contextlib.contextmanager
def draft(cache: Path) -> Iterator[Path]:
    """Give a new folder below a cache, gone afterwards unless it was `kept`."""
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder = cache / f"{DRAFT}{secrets.token_hex(8)}"
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # there is none when it was kept


def sweep_folders(cache: Path, known: Container[str], now: float) -> None:
    """Delete what processes left that were killed, and what nobody knows any more.

    A young folder stays: another process may have heard of a version before this one.

    Args:
        cache: The folder of drafts and of fetched versions; it need not be there.
        known: Names that stay.
        now: Seconds since the epoch.
    """
    for folder in cache.glob("*"):
        if folder.name not in known and now - folder.lstat().st_mtime > LEFT_S_MAX:
            shutil.rmtree(folder, ignore_errors=True)  # perhaps another process does it


def keep(folder: Path, target: Path) -> None:
    """Give a draft its name; where somebody was first, theirs stays.

    Raises:
        OSError: It cannot be renamed.
    """
    try:
        folder.rename(target)
    except OSError:
        if not target.is_dir():
            raise
    handle = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _mapped(file: BinaryIO) -> "memoryview | bytes":
    """Return a file's bytes without reading them all.

    It is not closed by hand: where it is refused, views of it live as long as the error.
    """
    if not os.fstat(file.fileno()).st_size:
        return b""
    return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _opened(
    stack: contextlib.ExitStack, path: str | Path, flags: int, handle: int | None = None
) -> int:
    found = os.open(path, flags, dir_fd=handle)
    stack.callback(os.close, found)
    return found


def _check_plain(path: str, found: os.stat_result) -> None:
    if stat.S_ISLNK(found.st_mode):
        raise InvalidArgument(f"'{path}' is a symbolic link; copy what it points to")
    if not stat.S_ISREG(found.st_mode):
        raise InvalidArgument(f"'{path}' is no plain file")
    if found.st_nlink != 1:
        raise InvalidArgument(f"'{path}' is a hard link: it has other names too; copy the file")
