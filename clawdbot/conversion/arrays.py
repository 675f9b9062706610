"""Inputs to compare models on, and how far their outputs are apart."""

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clawdbot.conversion.source import Feeds, TensorInfo
from schemas import datatypes
from schemas.errors import InvalidArgument
from schemas.parity import OutputParity, Tolerance


if TYPE_CHECKING:
    from numpy.typing import NDArray

EXAMPLES_BYTES_MAX = 1024 * 1024 * 1024
SLICE_ROWS = 32
INTEGERS_BELOW = 4
"""Random integers are below it: they are mostly indices, and every table has so many rows."""
RANDOM_SIZES = ((1, 4), (3, 7), (16, 5))
"""Rows, and any other free size, of each random request."""


def datatype_of(array: "NDArray[Any]") -> str:
    """Return what the Open Inference Protocol calls an array's elements."""
    if array.dtype.kind in "OUS":
        return "BYTES"
    return datatypes.of_array(array.dtype.str) or str(array.dtype)


def read_examples(path: Path) -> "dict[str, NDArray[Any]]":
    """Read the arrays of an .npz file; objects in it are not unpickled.

    Raises:
        InvalidArgument: It cannot be read, or holds something else.
    """
    import numpy as np

    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(info.file_size for info in archive.infolist())
        if size > EXAMPLES_BYTES_MAX:
            raise InvalidArgument(f"{path.name} holds more than {EXAMPLES_BYTES_MAX} bytes")
        with np.load(path, allow_pickle=False) as found:
            return {name: np.asarray(found[name]) for name in found.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InvalidArgument(f"cannot read {path.name}: {error}") from error


def random_requests(inputs: Sequence[TensorInfo], seed: int) -> Iterator[Feeds]:
    """Yield requests of random numbers: floats of a normal distribution, small integers."""
    import numpy as np

    chance = np.random.default_rng(seed)
    for rows, other in RANDOM_SIZES:
        sizes: dict[str, int] = {}
        feeds: dict[str, Any] = {}
        for item in inputs:
            for index, size in enumerate(item.shape):
                if isinstance(size, str):
                    sizes.setdefault(size, rows if index == 0 else other)
            shape = [size if isinstance(size, int) else sizes[size] for size in item.shape]
            feeds[item.name] = _random(chance, item.datatype, shape)
        yield feeds


def _random(chance: Any, datatype: str, shape: Sequence[int]) -> "NDArray[Any]":
    import numpy as np

    if datatype in {"FP16", "FP32", "FP64"}:
        found: NDArray[Any] = chance.standard_normal(shape).astype(datatypes.NUMPY[datatype])
        return found
    if datatype == "BYTES":
        return np.array([f"text {n}" for n in range(int(np.prod(shape)))], object).reshape(shape)
    below = 2 if datatype == "BOOL" else INTEGERS_BELOW
    whole: NDArray[Any] = chance.integers(0, below, shape).astype(datatypes.NUMPY[datatype])
    return whole


def check_examples(examples: Feeds, inputs: Sequence[TensorInfo]) -> None:
    """Refuse examples that are no inputs of a model.

    Raises:
        InvalidArgument: An input is absent, or has another datatype or shape.
    """
    for item in inputs:
        array = examples.get(item.name)
        if array is None:
            have = ", ".join(examples) or "nothing"
            raise InvalidArgument(f"the examples have no '{item.name}', only {have}")
        if datatype_of(array) != item.datatype:
            raise InvalidArgument(
                f"'{item.name}' of the examples is {datatype_of(array)}, not {item.datatype}"
            )
        inner = zip(array.shape[1:], item.shape[1:], strict=False)
        fits = len(array.shape) == len(item.shape) and all(
            isinstance(wanted, str) or size == wanted for size, wanted in inner
        )
        if not fits or not len(array):
            raise InvalidArgument(
                f"'{item.name}' of the examples has the shape {list(array.shape)}; the model takes "
                f"{list(item.shape)}, and at least a row"
            )


def requests_of(examples: Feeds, inputs: Sequence[TensorInfo]) -> Iterator[Feeds]:
    """Yield the rows of examples as requests: the first alone where that can be, then all.

    Raises:
        InvalidArgument: They are no inputs of the model.
    """
    check_examples(examples, inputs)
    if all(isinstance(item.shape[0], str) for item in inputs):
        yield {item.name: examples[item.name][:1] for item in inputs}
    yield from slices(examples, inputs)


def slices(examples: Feeds, inputs: Sequence[TensorInfo]) -> Iterator[Feeds]:
    """Yield the rows of examples as requests of many rows.

    Raises:
        InvalidArgument: They are no inputs of the model.
    """
    check_examples(examples, inputs)
    fixed = [item.shape[0] for item in inputs if isinstance(item.shape[0], int)]
    rows = min(len(examples[item.name]) for item in inputs)
    step = fixed[0] if fixed else SLICE_ROWS
    if rows < step and fixed:
        raise InvalidArgument(f"the examples have {rows} rows, the model takes {step} at a time")
    for at in range(0, rows - step + 1 if fixed else rows, step):
        yield {item.name: examples[item.name][at : at + step] for item in inputs}


def compare(
    old: "Sequence[NDArray[Any]]", new: "Sequence[NDArray[Any]]", tolerance: Tolerance
) -> OutputParity:
    """Return how far one output of two models is apart, over all requests."""
    import numpy as np

    if any(before.shape != after.shape for before, after in zip(old, new, strict=True)):
        return OutputParity(elements=0, differing=1, passed=False)
    left = np.concatenate([item.reshape(-1) for item in old])
    right = np.concatenate([item.reshape(-1) for item in new])
    if left.dtype.kind != "f" or right.dtype.kind != "f":
        return _compare_exact(left, right, tolerance)
    left, right = left.astype(np.float64), right.astype(np.float64)
    same = (left == right) | (np.isnan(left) & np.isnan(right))  # infinities are equal as well
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        apart = np.where(same, 0.0, np.abs(right - left))
        apart = np.where(np.isnan(apart), np.inf, apart)
        relative = np.where((left != 0) & ~same, apart / np.abs(left), 0.0)
        allowed = tolerance.atol is None or apart <= tolerance.atol + tolerance.rtol * np.abs(left)
    off = int(np.size(apart) - np.count_nonzero(np.broadcast_to(allowed | same, apart.shape)))
    cosine = _cosine(left, right)
    holds = off == 0 and (cosine is None or cosine >= tolerance.cosine_min)
    return OutputParity(
        elements=int(left.size),
        max_abs=_finite(apart.max(initial=0.0)),
        max_rel=_finite(relative.max(initial=0.0)),
        mean_abs=_finite(apart.mean()) if apart.size else 0.0,
        cosine=cosine,
        differing=off,
        passed=bool(holds and np.isfinite(apart).all()),
    )


def _compare_exact(
    left: "NDArray[Any]", right: "NDArray[Any]", tolerance: Tolerance
) -> OutputParity:
    import numpy as np

    off = int(np.count_nonzero(left != right))
    numbers = left.dtype.kind in "iu" and right.dtype.kind in "iu"
    apart = np.abs(left.astype(np.float64) - right.astype(np.float64)) if numbers else None
    agreement = 1 - off / left.size if left.size else 1.0
    return OutputParity(
        elements=int(left.size),
        max_abs=None if apart is None else float(apart.max(initial=0.0)),
        differing=off,
        passed=agreement >= tolerance.agreement_min,
    )


def _cosine(left: "NDArray[Any]", right: "NDArray[Any]") -> float | None:
    """Return the cosine of two vectors; None where one of them is 0 or not finite."""
    import numpy as np

    known = np.isfinite(left) & np.isfinite(right)
    left, right = left[known], right[known]
    norms = float(np.linalg.norm(left) * np.linalg.norm(right))
    return min(1.0, float(left @ right) / norms) if norms > 0 else None


def _finite(number: Any) -> float:
    """Return a number that JSON can hold."""
    return min(float(number), 1.7976931348623157e308)


def rows_of(requests: Sequence[Mapping[str, Any]]) -> int:
    """Return how many rows requests have together."""
    return sum(len(next(iter(feeds.values()))) if feeds else 1 for feeds in requests) or 1
