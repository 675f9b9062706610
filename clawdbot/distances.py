"""How far two values are apart: texts, numbers, vectors, tensors. Pure."""

import math
import struct
from collections.abc import Sequence

from schemas import datatypes
from schemas.values import Tensor


TEXT_CHARS_MAX = 200_000
"""Characters of a text whose edit distance is computed; of longer ones only that they differ."""
ELEMENTS_MAX = 4_000_000
"""Elements of a tensor that are compared one by one."""


def edit_distance(left: str, right: str) -> int:
    """Return how many characters must be inserted, deleted or replaced.

    Bit-parallel: a column of the matrix is one long integer, so it takes len(right) steps.

    Source: Hyyrö, "A bit-vector algorithm for computing Levenshtein and Damerau edit distances"
    (2003), after Myers (1999).
    """
    start = 0
    while start < min(len(left), len(right)) and left[start] == right[start]:
        start += 1
    end = 0
    while end < min(len(left), len(right)) - start and left[-1 - end] == right[-1 - end]:
        end += 1
    left, right = left[start : len(left) - end], right[start : len(right) - end]
    if not left or not right:
        return len(left) or len(right)
    places: dict[str, int] = {}
    for index, character in enumerate(left):
        places[character] = places.get(character, 0) | 1 << index
    mask, last = (1 << len(left)) - 1, 1 << len(left) - 1
    up, down, distance = mask, 0, len(left)
    for character in right:
        equal = places.get(character, 0)
        across = equal | down
        diagonal = (((equal & up) + up) ^ up) | equal
        rise, fall = down | ~(diagonal | up), up & diagonal
        distance += bool(rise & last) - bool(fall & last)
        rise = rise << 1 | 1
        up = (fall << 1 | ~(across | rise)) & mask
        down = rise & across & mask
    return distance


def similarity(left: str, right: str) -> float | None:
    """Return 1 for equal texts, 0 for nothing in common: 1 - edits / length of the longer.

    Returns:
        In [0, 1]; None for texts longer than TEXT_CHARS_MAX.
    """
    longer = max(len(left), len(right))
    if longer > TEXT_CHARS_MAX:
        return None
    return 1.0 if not longer else 1 - edit_distance(left, right) / longer


def max_abs(left: Sequence[float], right: Sequence[float]) -> float:
    """Return the largest difference of two vectors of the same length; NaN counts as infinite."""
    worst = 0.0
    for one, other in zip(left, right, strict=True):
        if one == other or (math.isnan(one) and math.isnan(other)):
            continue
        apart = abs(one - other)
        worst = max(worst, math.inf if math.isnan(apart) else apart)
    return worst


def cosine(left: Sequence[float], right: Sequence[float]) -> float | None:
    """Return the cosine of the angle between two vectors; None where one is zero or not finite."""
    product = sum(one * other for one, other in zip(left, right, strict=True))
    norm = math.sqrt(sum(one * one for one in left)) * math.sqrt(sum(one * one for one in right))
    if not norm or not math.isfinite(norm) or not math.isfinite(product):
        return None
    return max(-1.0, min(1.0, product / norm))


def elements(tensor: Tensor) -> Sequence[float] | None:
    """Return a tensor's elements in order; None where they are too many, or no numbers."""
    kind = datatypes.STRUCT.get(tensor.datatype)
    if kind is None or math.prod(tensor.shape) > ELEMENTS_MAX:
        return None
    layout = f"<{math.prod(tensor.shape)}{kind}"
    if struct.calcsize(layout) != len(tensor.data):
        return None
    return struct.unpack(layout, tensor.data)
