"""The classification extension: the largest elements of an output, in place of the output.

Source: Triton's classification extension; the texts are as its `TopkClassifications` writes them.
"""

import math
import struct
from heapq import nsmallest
from typing import Any

from schemas import tensors
from schemas.catalogue import Port
from schemas.errors import InvalidArgument
from schemas.values import Tensor
from services.gateway.inference.elements import NUMBERS


_CODES = {**NUMBERS, "FP16": "e", "BF16": "f"}


def classified(tensor: Tensor, port: Port, count: int, *, rows: bool) -> Tensor:
    """Return the `count` largest elements of each row, as `value:index` or `value:index:label`.

    Args:
        tensor: Numbers.
        port: Says whose they are, and the labels if it has any.
        count: Of the largest, at least 1; no more come than there are.
        rows: Whether the first dimension counts rows; else all is one.

    Returns:
        BYTES [row, class], or [class]; the largest first, NaN last, equals by their index.

    Raises:
        InvalidArgument: Not numbers.
    """
    numbers = _numbers(tensor)
    size = tensor.shape[0] if rows and tensor.shape else 1
    width = len(numbers) // size if size else 0
    texts: list[bytes] = []
    for row in range(size):
        part = numbers[row * width : (row + 1) * width]
        best = nsmallest(count, range(width), key=lambda index: _key(part[index]))
        texts += [_text(part[index], index, port.labels) for index in best]
    shape = (size, min(count, width)) if rows else (min(count, width),)
    return Tensor(datatype=tensors.BYTES, shape=shape, data=tensors.pack(texts))


def _key(value: float) -> tuple[bool, float]:
    return (True, 0.0) if math.isnan(value) else (False, -value)


def _text(value: Any, index: int, labels: tuple[str, ...]) -> bytes:
    number = str(value) if isinstance(value, int) else f"{value:.6f}"
    label = f":{labels[index]}" if index < len(labels) else ""
    return f"{number}:{index}{label}".encode()


def _numbers(tensor: Tensor) -> list[Any]:
    data = tensor.data
    if tensor.datatype == "BF16":  # the upper half of an FP32
        data = b"".join(b"\0\0" + data[at : at + 2] for at in range(0, len(data), 2))
    code = _CODES.get(tensor.datatype)
    if code is None:
        raise InvalidArgument(f"classification needs numbers, not {tensor.datatype}")
    return [number for (number,) in struct.iter_unpack(f"<{code}", data)]
