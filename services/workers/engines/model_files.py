"""Reads a model's file: below the models directory, a plain file, not too large.

An ONNX file is looked through before any C++ sees it: weights that it keeps in other files would
be read from wherever the file says.

Source: onnx.proto3 of ONNX 1.23, message and field numbers.
"""

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from schemas.errors import ModelUnavailable


MODEL_BYTES_MAX = 1024 * 1024 * 1024
GRAPH_DEPTH_MAX = 64

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_VARINT_BYTES = 10
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
_TENSOR: dict[int, Any] = {}
_SPARSE: dict[int, Any] = {1: _TENSOR, 2: _TENSOR}
_GRAPH: dict[int, Any] = {}
_ATTRIBUTE = {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH, 22: _SPARSE, 23: _SPARSE}
_NODE = {5: _ATTRIBUTE}
_GRAPH.update({1: _NODE, 5: _TENSOR, 15: _SPARSE})
_FUNCTION = {7: _NODE, 11: _ATTRIBUTE}
_TRAINING = {1: _GRAPH, 2: _GRAPH}
_MODEL = {7: _GRAPH, 20: _TRAINING, 25: _FUNCTION}


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
    """Refuse what is no ONNX model, or keeps weights in other files.

    Raises:
        ModelUnavailable: Says which.
    """
    try:
        if not _walk(memoryview(data), _MODEL, GRAPH_DEPTH_MAX):
            raise ModelUnavailable("the file holds no ONNX graph")
    except (IndexError, ValueError) as error:
        raise ModelUnavailable("the file is no ONNX model: it is damaged") from error


def _walk(message: memoryview, kind: Mapping[int, Any], depth: int) -> bool:
    """Look through one message; tell whether anything of interest was in it."""
    if depth == 0:
        raise ModelUnavailable("the model nests too deeply")
    seen = False
    for number, wire, value in _fields(message):
        if kind is _TENSOR:
            if number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0):
                raise ModelUnavailable(
                    "the model keeps weights in other files; save it in one: "
                    "onnx.save(model, path, save_as_external_data=False)"
                )
        elif number in kind and wire == _BYTES:
            seen = True
            assert isinstance(value, memoryview), "a message is bytes"
            _walk(value, kind[number], depth - 1)
    return seen


def _fields(message: memoryview) -> Iterator[tuple[int, int, "int | memoryview"]]:
    """Yield number, wire type and value of each field; of fixed ones no value."""
    at, end = 0, len(message)
    while at < end:
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, at = _varint(message, at)
            yield number, wire, value
            continue
        if wire == _BYTES:
            size, at = _varint(message, at)
        elif wire in {_FIXED64, _FIXED32}:
            size = 8 if wire == _FIXED64 else 4
        else:
            raise ValueError("a group, or no wire type")
        if at + size > end or number == 0:
            raise ValueError("a field that ends outside")
        yield number, wire, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for index in range(_VARINT_BYTES):
        byte = message[at + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:  # noqa: PLR2004 - the continuation bit
            return value, at + index + 1
    raise ValueError("a varint that does not end")
