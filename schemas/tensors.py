"""The bytes of tensors: what each datatype of the Open Inference Protocol takes.

Numbers are little-endian, row-major, tightly packed; an element of BYTES is its length, four bytes
little-endian, and its bytes.

Source: Open Inference Protocol v2, binary tensor data extension.
"""

import math
import struct
from collections.abc import Iterable, Sequence

from schemas.errors import InvalidArgument


DATATYPE_SIZES = {
    "BOOL": 1,
    "UINT8": 1,
    "UINT16": 2,
    "UINT32": 4,
    "UINT64": 8,
    "INT8": 1,
    "INT16": 2,
    "INT32": 4,
    "INT64": 8,
    "FP16": 2,
    "BF16": 2,
    "FP32": 4,
    "FP64": 8,
}
"""Bytes of one element."""
BYTES = "BYTES"
DATATYPES = (*DATATYPE_SIZES, BYTES)
RANK_MAX = 16
COUNT_MAX = 2**62

_LENGTH = struct.Struct("<I")


def check(datatype: str, shape: Sequence[int], data: bytes) -> None:
    """Refuse bytes that do not fill a shape.

    Raises:
        InvalidArgument: Unknown datatype, or another byte count; names `datatype` or `data`.
    """
    count = count_of(shape)
    if datatype == BYTES:
        elements(data, count)
        return
    if datatype not in DATATYPE_SIZES:
        known = ", ".join(DATATYPES)
        raise InvalidArgument(f"unknown datatype; use one of {known}", field="datatype")
    expected = count * DATATYPE_SIZES[datatype]
    if len(data) != expected:
        raise InvalidArgument(
            f"the shape needs {expected} bytes, the tensor has {len(data)}", field="data"
        )


def count_of(shape: Sequence[int]) -> int:
    """Return how many elements a shape has.

    Raises:
        InvalidArgument: More than 63 bits can count; names `shape`.
    """
    count = math.prod(shape)
    if count > COUNT_MAX:
        raise InvalidArgument(f"the shape has more elements than {COUNT_MAX}", field="shape")
    return count


def pack(items: Iterable[bytes]) -> bytes:
    """Return the bytes of a BYTES tensor."""
    parts: list[bytes] = []
    for item in items:
        parts += (_LENGTH.pack(len(item)), item)
    return b"".join(parts)


def elements(data: bytes, count: int) -> list[bytes]:
    """Return the elements of a BYTES tensor, in row-major order.

    Raises:
        InvalidArgument: Truncated, or not `count` of them; names `data`.
    """
    found: list[bytes] = []
    at, end = 0, len(data)
    while at < end:
        if at + _LENGTH.size > end:
            raise InvalidArgument("the length of a BYTES element is cut off", field="data")
        (size,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if at + size > end:
            raise InvalidArgument(
                f"a BYTES element says it has {size} bytes, {end - at} are left", field="data"
            )
        found.append(data[at : at + size])
        at += size
    if len(found) != count:
        raise InvalidArgument(
            f"the shape needs {count} BYTES elements, the tensor has {len(found)}", field="data"
        )
    return found


def fits(shape: Sequence[int], declared: Sequence[int]) -> bool:
    """Tell whether a shape is one that a signature allows; -1 there is any size."""
    return len(shape) == len(declared) and all(
        size == wanted or wanted < 0 for size, wanted in zip(shape, declared, strict=True)
    )
