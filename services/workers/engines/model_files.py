"""Reads a model's file: below the models directory, a plain file, not too large.

An ONNX file is looked through before any C++ sees it (`schemas.onnx_file`): weights that it keeps
in other files would be read from wherever the file says.
"""

import os
import stat
from pathlib import Path, PurePosixPath

from schemas.errors import InvalidArgument, ModelUnavailable
from schemas.onnx_file import examine


MODEL_BYTES_MAX = 1024 * 1024 * 1024


def locate(models_dir: Path, source: str | None) -> Path:
    """Return where a model's file is.

    Raises:
        ModelUnavailable: No source, a path that leads out of the models directory, or no file.
    """
    if not source:
        raise ModelUnavailable("the catalogue names no source: a file below the models directory")
    parts = PurePosixPath(source).parts
    if source.startswith("/") or ".." in parts or "\\" in source or "\0" in source:
        raise ModelUnavailable(f"the source '{source}' must be a path below the models directory")
    root = models_dir.resolve()
    try:
        path = (root / source).resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise ModelUnavailable(f"there is no file '{source}' in the models directory") from error
    if not path.is_relative_to(root):
        raise ModelUnavailable(f"the source '{source}' is a link out of the models directory")
    if not path.is_file():
        raise ModelUnavailable(f"the source '{source}' is no plain file")
    return path


def size(models_dir: Path, source: str) -> int:
    """Return how many bytes a model's file has, or the files of its folder.

    Raises:
        ModelUnavailable: A path that leads out of the models directory.
    """
    folder = models_dir.resolve() / source
    if folder.is_dir() and folder.resolve().is_relative_to(models_dir.resolve()):
        return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    return locate(models_dir, source).stat().st_size


def read(models_dir: Path, source: str | None, bytes_max: int) -> bytes:
    """Return a model's file.

    Raises:
        ModelUnavailable: It is not there, cannot be read, or is too large.
    """
    path = locate(models_dir, source)
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:  # noqa: PTH123 - the flags
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ModelUnavailable(f"the source '{source}' is no plain file")
            data = file.read(bytes_max + 1)
    except OSError as error:
        raise ModelUnavailable(f"'{source}' cannot be read: {error.strerror}") from error
    if len(data) > bytes_max:
        raise ModelUnavailable(
            f"'{source}' has more than {bytes_max} bytes; CLAWDBOT_MODEL_BYTES_MAX is the limit"
        )
    return data


def check_onnx(data: bytes) -> None:
    """Refuse what is no ONNX model, keeps weights in other files, or is not safe to load.

    Raises:
        ModelUnavailable: Says which.
    """
    try:
        examine(data)
    except InvalidArgument as error:
        raise ModelUnavailable(error.message) from error
