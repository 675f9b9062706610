"""What a worker and the process of an isolated model send each other.

A frame is its length, four bytes little-endian, and a MessagePack document. Large bytes travel
beside it in a memory file that both map: each side writes one and reads the other, one frame at a
time. Nothing is unpickled, and neither side can shrink what the other reads.

Source: memfd_create(2), sealing; Apache Arrow's Plasma has the same split of small and large.
"""

import fcntl
import mmap
import os
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import ormsgpack

from schemas.errors import ClawdbotError, EngineFailed, by_code
from schemas.values import Binary, Tensor, Value


FRAME_BYTES_MAX = 64 * 1024 * 1024
"""A frame without what lies in the memory file."""
SHARED_BYTES_MIN = 16 * 1024
"""Bytes of a value from which on they are not in the frame."""
FIRST_BYTES = 64 * 1024
_ALIGNMENT = 64
_LENGTH = struct.Struct("<I")
_TENSOR, _BINARY, _JSON = 0, 1, 2


class Region:
    """A memory file that one process writes and another one reads.

    Args:
        fd: Of the file; it is closed with the region.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._map = mmap.mmap(fd, os.fstat(fd).st_size)
        self._at = _ALIGNMENT

    @classmethod
    def make(cls) -> "Region":
        """Make one that can grow, never shrink."""
        fd = os.memfd_create("clawdbot", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, FIRST_BYTES)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        return cls(fd)

    @property
    def flag(self) -> bool:
        """One bit that the writer may set at any time, and the reader look at."""
        return self._map[0] == 1

    @flag.setter
    def flag(self, value: bool) -> None:
        self._map[0] = int(value)

    def rewind(self) -> None:
        """Begin a new frame: what lies here is overwritten."""
        self._at = _ALIGNMENT

    def put(self, data: bytes) -> tuple[int, int]:
        """Write bytes; return where they are, and how many."""
        at, end = self._at, self._at + len(data)
        if end > len(self._map):
            os.ftruncate(self.fd, 1 << (end - 1).bit_length())
            self._map_anew()
        self._map[at:end] = data
        self._at = -(-end // _ALIGNMENT) * _ALIGNMENT
        return at, len(data)

    def take(self, at: int, size: int) -> bytes:
        """Return bytes that the other side wrote.

        Raises:
            EngineFailed: There are none.
        """
        if at + size > len(self._map):
            self._map_anew()
        if at < 0 or size < 0 or at + size > len(self._map):
            raise EngineFailed("the model's process sent a malformed frame")
        return self._map[at : at + size]

    def close(self) -> None:
        """Give the memory back."""
        self._map.close()
        os.close(self.fd)

    def _map_anew(self) -> None:
        self._map.close()
        self._map = mmap.mmap(self.fd, os.fstat(self.fd).st_size)


def pack(document: Any) -> bytes:
    """Return a frame."""
    body = ormsgpack.packb(document)
    return _LENGTH.pack(len(body)) + body


def length(head: bytes) -> int:
    """Return how many bytes follow the first four of a frame.

    Raises:
        EngineFailed: Too many.
    """
    size: int = _LENGTH.unpack(head)[0]
    if size > FRAME_BYTES_MAX:
        raise EngineFailed(f"a frame has {size} bytes; at most {FRAME_BYTES_MAX} are read")
    return size


def pack_values(values: Mapping[str, Value], region: Region | None) -> dict[str, list[Any]]:
    """Return named values as a frame has them, large ones in the region if there is one."""
    packed: dict[str, list[Any]] = {}
    for name, value in values.items():
        match value:
            case Tensor():
                place = _place(value.data, region)
                packed[name] = [_TENSOR, value.datatype, list(value.shape), place]
            case Binary():
                packed[name] = [_BINARY, value.media_type, _place(value.data, region)]
            case _:
                packed[name] = [_JSON, value]
    return packed


def unpack_values(packed: Mapping[str, Sequence[Any]], region: Region | None) -> dict[str, Value]:
    """Return the values behind `pack_values`.

    Raises:
        EngineFailed: They are malformed.
    """
    values: dict[str, Value] = {}
    for name, item in packed.items():
        match item:
            case [int(kind), str(datatype), list(shape), place] if kind == _TENSOR:
                data = _find(place, region)
                values[name] = Tensor(datatype=datatype, shape=tuple(shape), data=data)
            case [int(kind), str(media_type), place] if kind == _BINARY:
                values[name] = Binary(media_type=media_type, data=_find(place, region))
            case [int(kind), value] if kind == _JSON:
                values[name] = value
            case _:
                raise EngineFailed("the model's process sent a malformed value")
    return values


def pack_error(error: ClawdbotError) -> dict[str, Any]:
    """Return an error of ours as a frame has it."""
    return {"code": error.code, "message": error.message, "field": error.field}


def unpack_error(packed: Mapping[str, Any]) -> ClawdbotError:
    """Return the error behind `pack_error`."""
    kind = by_code().get(str(packed.get("code")), EngineFailed)
    field = packed.get("field")
    return kind(str(packed.get("message")), field=None if field is None else str(field))


def _place(data: bytes, region: Region | None) -> bytes | list[int]:
    if region is None or len(data) < SHARED_BYTES_MIN:
        return data
    return list(region.put(data))


def _find(place: Any, region: Region | None) -> bytes:
    match place:
        case bytes():
            return place
        case [int(at), int(size)] if region is not None:
            return region.take(at, size)
        case _:
            raise EngineFailed("the model's process sent a malformed value")
