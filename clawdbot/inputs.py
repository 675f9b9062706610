"""What a user passes to a run, made ready to be sent; and bytes taken out of what came back."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.errors import InvalidArgument
from schemas.submission import pack_inputs
from schemas.values import INLINE_BYTES_MAX, OCTETS, Binary, Tensor, Wire, media_type_of, to_wire


@dataclass(frozen=True)
class Upload:
    """An input too large to travel inside a submission."""

    name: str
    data: bytes
    media_type: str


def packed(wire: Wire) -> bytes:
    """Return the body that submits wire values.

    Raises:
        InvalidArgument: One cannot be sent; names the input.
    """
    try:
        return pack_inputs(wire)
    except TypeError:
        for name, value in wire.items():
            try:
                pack_inputs({name: value})
            except TypeError as error:
                raise InvalidArgument(
                    f"{error}; send what JSON can hold, bytes, a Path or a Tensor",
                    field=f"inputs.{name}",
                ) from error
        raise


def inline(value: Binary | Tensor) -> bytes:
    """Return the bytes of a value that is no blob.

    Raises:
        InvalidArgument: It has none.
    """
    if isinstance(value, Binary | Tensor):
        return value.data
    raise InvalidArgument(f"only BlobRef, Binary and Tensor hold bytes, not {type(value).__name__}")


def prepare(inputs: Mapping[str, Any]) -> tuple[Wire, list[Upload]]:
    """Turn what a user passes into wire values, and what must be uploaded first.

    A `Path` is a file, `bytes` are bytes, everything else is itself.

    Raises:
        InvalidArgument: A file that cannot be read; names the input.
    """
    wire: Wire = {}
    uploads: list[Upload] = []
    for name, value in inputs.items():
        if isinstance(value, Path):
            value = _file(name, value)  # noqa: PLW2901 - what the path stands for
        if isinstance(value, bytes):
            value = Binary(media_type=OCTETS, data=value)  # noqa: PLW2901
        if isinstance(value, Binary) and len(value.data) > INLINE_BYTES_MAX:
            uploads.append(Upload(name, value.data, value.media_type))
        else:
            wire[name] = to_wire(value)
    return wire, uploads


def _file(name: str, path: Path) -> Binary | str:
    media_type = media_type_of(path.name)
    try:
        data = path.read_bytes()
        return (
            data.decode()
            if media_type == "text/plain"
            else Binary(media_type=media_type, data=data)
        )
    except OSError as error:
        raise InvalidArgument(
            f"cannot read {path}: {error.strerror}", field=f"inputs.{name}"
        ) from error
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{path} is not UTF-8", field=f"inputs.{name}") from error
