"""Bytes in pieces: large ones are never copied into one, the socket takes them as they lie."""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import ormsgpack


LARGE_BYTES = 256 * 1024
"""Bytes of more than this are a piece of their own."""
_HEAD = struct.Struct(">BI")
_BIN_32, _MAP_32, _SMALL_MAP, _SMALL_MAP_MAX = 0xC6, 0xDF, 0x80, 15


@dataclass(frozen=True, slots=True)
class Pieces:
    """What is sent as one."""

    parts: tuple[bytes, ...]

    def __len__(self) -> int:
        """Return how many bytes it has."""
        return sum(map(len, self.parts))

    def __bytes__(self) -> bytes:
        """Return them as one."""
        return b"".join(self.parts)


Body = bytes | Pieces


def parts_of(body: Body) -> tuple[bytes, ...]:
    """Return the pieces of a body; bytes are one."""
    return body.parts if isinstance(body, Pieces) else (body,)


def split(body: Body, at: int) -> tuple[bytes, bytes]:
    """Return the first bytes of a body, and the others."""
    first, *others = parts_of(body)
    if not others or len(first) < at:
        whole = bytes(body)
        return whole[:at], whole[at:]
    return first[:at], b"".join([memoryview(first)[at:], *others])


def runs(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the same bytes, small pieces put together, large ones as they are."""
    small: list[bytes] = []
    for piece in pieces:
        if len(piece) <= LARGE_BYTES:
            small.append(piece)
            continue
        if small:
            yield b"".join(small)
            small = []
        yield piece
    if small:
        yield b"".join(small)


def packed(document: dict[str, Any], bulk: int) -> Body:
    """Return a document as MessagePack; large bytes in its objects are pieces of it.

    Args:
        document: What to pack.
        bulk: How many bytes its values have; few are packed at once.

    Source: MessagePack's specification, `bin 32`, `fixmap` and `map 32`.
    """
    if bulk <= LARGE_BYTES:
        return ormsgpack.packb(document)
    return Pieces(tuple(runs(_packed(document))))


def _packed(value: Any) -> Iterator[bytes]:
    if isinstance(value, dict):
        count = len(value)
        is_small = count <= _SMALL_MAP_MAX
        yield bytes([_SMALL_MAP | count]) if is_small else _HEAD.pack(_MAP_32, count)
        for key, item in value.items():
            yield ormsgpack.packb(key)
            yield from _packed(item)
    elif isinstance(value, bytes) and len(value) > LARGE_BYTES:
        yield _HEAD.pack(_BIN_32, len(value))
        yield value
    else:
        yield ormsgpack.packb(value)
