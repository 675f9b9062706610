"""Tensors between JSON and bytes, without anything but the standard library."""

import math
import sys
from array import array
from collections.abc import Sequence
from itertools import chain
from typing import Any

from schemas import datatypes, tensors
from schemas.errors import InvalidArgument
from schemas.values import Tensor


NUMBERS = {name: code for name, code in datatypes.STRUCT.items() if name not in {"BOOL", "FP16"}}
_FLOATS = {"FP32", "FP64"}
_BINARY_ONLY = {"FP16", "BF16"}
_KINDS: dict[str, tuple[set[type], str]] = {
    "BOOL": ({bool}, "true and false"),
    "BYTES": ({str}, "strings"),
    **dict.fromkeys(NUMBERS, ({int}, "whole numbers")),
    **dict.fromkeys(_FLOATS, ({int, float}, "numbers")),
}


def from_json(datatype: str, shape: Sequence[int], data: Any) -> Tensor:
    """Return a tensor whose elements came as JSON, nested or flat.

    Raises:
        InvalidArgument: Elements that are not of the datatype, or do not fill the shape.
    """
    if datatype in _BINARY_ONLY:
        raise InvalidArgument(f"JSON cannot carry {datatype}; send it as binary data")
    if datatype not in _KINDS:
        known = ", ".join(tensors.DATATYPES)
        raise InvalidArgument(f"unknown datatype '{datatype[:32]}'; use one of {known}")
    count, flat = tensors.count_of(shape), _flatten(shape, data)
    if len(flat) != count:
        raise InvalidArgument(
            f"the shape {list(shape)} needs {count} elements, data has {len(flat)}"
        )
    kinds, words = _KINDS[datatype]
    if not set(map(type, flat)) <= kinds:
        raise InvalidArgument(f"the elements of {datatype} are {words}")
    return Tensor(datatype=datatype, shape=tuple(shape), data=_bytes_of(datatype, flat))


def to_json(tensor: Tensor) -> list[Any]:
    """Return the elements of a tensor, flat.

    Raises:
        InvalidArgument: JSON cannot say them; binary data can.
    """
    datatype, data = tensor.datatype, tensor.data
    if datatype in _BINARY_ONLY:
        raise InvalidArgument(f"JSON cannot carry {datatype}; ask for binary_data")
    if datatype == "BOOL":
        return [byte != 0 for byte in data]
    if datatype == "BYTES":
        try:
            return [
                item.decode() for item in tensors.elements(data, tensors.count_of(tensor.shape))
            ]
        except UnicodeDecodeError as error:
            raise InvalidArgument("an element is not UTF-8; ask for binary_data") from error
    numbers = array(NUMBERS[datatype])
    numbers.frombytes(data)
    if sys.byteorder == "big":
        numbers.byteswap()
    if datatype in _FLOATS and not all(map(math.isfinite, numbers)):
        raise InvalidArgument("an element is NaN or infinite, which JSON cannot say; ask for "
                              "binary_data")  # fmt: skip
    return numbers.tolist()


def _flatten(shape: Sequence[int], data: Any) -> list[Any]:
    """Return nested lists as one, when they nest as the shape says."""
    if not isinstance(data, list):
        raise InvalidArgument("data must be a list")
    level: list[Any] = data
    sizes = [len(level)]
    while level and type(level[0]) is list:
        lengths = {len(item) if type(item) is list else -1 for item in level}
        if len(lengths) > 1 or len(sizes) > len(shape):
            raise InvalidArgument(f"data does not nest as the shape {list(shape)}")
        sizes.append(lengths.pop())
        level = list(chain.from_iterable(level))
    if len(sizes) > 1 and sizes != list(shape):
        raise InvalidArgument(f"data is nested as {sizes}, the shape is {list(shape)}")
    return level


def pack(datatype: str, flat: list[Any]) -> bytes:
    """Return the bytes of numbers or truths.

    Raises:
        InvalidArgument: One is out of the datatype's range.
    """
    if datatype == "BOOL":
        return bytes(flat)
    try:
        numbers = array(NUMBERS[datatype], flat)
    except OverflowError as error:
        raise InvalidArgument(f"an element is out of the range of {datatype}") from error
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


def _bytes_of(datatype: str, flat: list[Any]) -> bytes:
    """Return the bytes of elements that came as JSON, which has no NaN and no infinity."""
    if datatype == "BYTES":
        try:
            return tensors.pack(item.encode() for item in flat)
        except UnicodeEncodeError as error:
            raise InvalidArgument("a string holds half of a surrogate pair") from error
    if datatype == "FP32" and not all(map(math.isfinite, array("f", flat))):
        raise InvalidArgument("an element is out of the range of FP32")
    return pack(datatype, flat)
