"""What files of a model may be called and may hold; everything else is refused by name.

A file is kept because an engine reads it, so the list of what may be there is short. Formats that
run code when they are read (pickles, and what is packed around them) are none of them, under
whichever name they come.
"""

import re
from collections.abc import Sequence
from typing import Any

import orjson

from schemas import pt2
from schemas.errors import InvalidArgument, ModelUnavailable
from schemas.onnx_file import examine
from schemas.tokenizer_file import TOKENIZER_BYTES_MAX


FILES_MAX = 256
PATH_CHARS_MAX = 256
PATH_DEPTH_MAX = 8
TEXT_BYTES_MAX = 16 * 1024 * 1024
"""Of a file that holds no weights."""
SAFETENSORS_HEADER_BYTES_MAX = 16 * 1024 * 1024

ONNX, SAFETENSORS = ".onnx", ".safetensors"
PROGRAM = ".pt2"
"""Of torch.export: an archive that the engine `torch` takes apart, and the only one."""
WEIGHTS = (ONNX, SAFETENSORS, PROGRAM)
SUFFIXES = (
    *WEIGHTS,
    ".csv",
    ".fsg",
    ".jsgf",
    ".json",
    ".labels",
    ".md",
    ".model",
    ".tsv",
    ".txt",
    ".vocab",
    ".yaml",
    ".yml",
)
_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_LENGTH_BYTES = 8
_ARCHIVE = b"PK\x03\x04"
_MAGIC = {
    _ARCHIVE: "an archive",
    b"PK\x05\x06": "an archive",
    b"\x1f\x8b": "an archive",
    b"BZh9": "an archive",
    b"\xfd7zXZ": "an archive",
    b"7z\xbc\xaf": "an archive",
    b"\x93NUMPY": "a NumPy file",
    b"\x89HDF": "an HDF5 file",
    b"\x7fELF": "a program",
    b"MZ\x90": "a program",
    b"#!": "a program",
}
_PICKLE = re.compile(rb"\x80[\x02-\x05]")
HEAD_BYTES = 512
"""As much of a file as `check_head` looks at."""


def check_path(path: str) -> str:
    """Return a path of a file inside a model's folder.

    Raises:
        InvalidArgument: It is none: leads elsewhere, is hidden, or has an unknown ending.
    """
    segments = path.split("/")
    if (
        len(path) > PATH_CHARS_MAX
        or len(segments) > PATH_DEPTH_MAX
        or not all(_SEGMENT.fullmatch(segment) for segment in segments)
        or ".." in path
    ):
        raise InvalidArgument(
            f"'{path[:64]}' is no path of a model's file: use letters, digits, '_', '.', '-', with "
            f"'/' between at most {PATH_DEPTH_MAX} names, none of which begins with '.'"
        )
    if not segments[-1].lower().endswith(SUFFIXES):
        raise InvalidArgument(
            f"'{path[:64]}' is no kind of file that engines read; a model is made of "
            f"{', '.join(SUFFIXES)}; weights as a pickle run code: convert them to safetensors"
        )
    return path


def check_paths(paths: Sequence[str]) -> None:
    """Refuse paths that no folder could hold at once, on any system.

    Raises:
        InvalidArgument: Names one.
    """
    if len(paths) > FILES_MAX:
        raise InvalidArgument(f"a model has at most {FILES_MAX} files")
    folded = [check_path(path).lower() for path in paths]
    folders = {path[:at] for path in folded for at in range(len(path)) if path[at] == "/"}
    seen: set[str] = set()
    for path, plain in zip(paths, folded, strict=True):
        if plain in seen or plain in folders:
            raise InvalidArgument(f"'{path}' is there twice")
        seen.add(plain)


def check_size(path: str, size_bytes: int, bytes_max: int) -> None:
    """Refuse a file that is too large for what it is.

    Raises:
        InvalidArgument: Names it.
    """
    limit = min(bytes_max, TEXT_BYTES_MAX)
    if path.lower().endswith(WEIGHTS):
        limit = bytes_max
    elif path.endswith(".json"):
        limit = min(bytes_max, TOKENIZER_BYTES_MAX)
    if size_bytes > limit:
        raise InvalidArgument(f"'{path}' has {size_bytes} bytes; at most {limit} are taken")


def check_head(path: str, head: bytes) -> None:
    """Refuse a file that begins as something that is unpacked or run.

    Args:
        path: Its name.
        head: Its first `HEAD_BYTES` bytes, or all of them.

    Raises:
        InvalidArgument: Says what it is.
    """
    if _PICKLE.match(head):
        raise InvalidArgument(f"'{path}' is a pickle, which runs code when it is read")
    if path.lower().endswith(PROGRAM):
        if not head.startswith(_ARCHIVE):
            raise InvalidArgument(f"'{path}' is no program of torch.export")
        return
    for magic, what in _MAGIC.items():
        if head.startswith(magic) and not path.lower().endswith(ONNX):
            raise InvalidArgument(f"'{path}' is {what}; a model's files are plain")


def check_content(path: str, data: "bytes | memoryview") -> None:
    """Refuse a file whose content is not what its name says, or is not safe to load.

    Raises:
        InvalidArgument: Names the file, and says why.
    """
    try:
        check_head(path, bytes(data[:HEAD_BYTES]))
        if path.lower().endswith(ONNX):
            examine(data)
        elif path.lower().endswith(SAFETENSORS):
            _check_safetensors(data)
        elif path.lower().endswith(PROGRAM):
            pt2.check(data)
    except ModelUnavailable as error:
        raise InvalidArgument(f"'{path}': {error.message}") from error
    except InvalidArgument as error:
        if error.message.startswith(f"'{path}'"):
            raise
        raise InvalidArgument(f"'{path}': {error.message}") from error


def _check_safetensors(data: "bytes | memoryview") -> None:
    """Refuse a file whose header is not sound.

    Source: the format of safetensors 0.5: eight bytes of length, JSON, then the buffer.
    """
    length = int.from_bytes(bytes(data[:_LENGTH_BYTES]), "little")
    start = _LENGTH_BYTES + length
    if len(data) < _LENGTH_BYTES or not 0 < length <= SAFETENSORS_HEADER_BYTES_MAX:
        raise InvalidArgument("the file is no safetensors file: its header has no sound length")
    if start > len(data):
        raise InvalidArgument("the file is no safetensors file: it is cut off")
    try:
        header: Any = orjson.loads(bytes(data[_LENGTH_BYTES:start]))
        entries = [item for name, item in header.items() if name != "__metadata__"]
        spans = [tuple(item["data_offsets"]) for item in entries]
        sound = all(0 <= first <= last <= len(data) - start for first, last in spans)
    except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise InvalidArgument("the file is no safetensors file: its header is damaged") from error
    if not sound:
        raise InvalidArgument("a tensor lies outside of the safetensors file")
