"""Compares a source with the ONNX model made of it, and lets them race."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from clawdbot.conversion import arrays
from clawdbot.conversion.onnx_source import OnnxSource
from clawdbot.conversion.source import Feeds, Source
from schemas.errors import FailedPrecondition, InvalidArgument
from schemas.parity import Parity, Speed, Tolerance


if TYPE_CHECKING:
    from numpy.typing import NDArray

RACE_S = 1.0
RACE_CALLS_MAX = 200
RACE_CALLS = 5
"""At least."""


@dataclass(frozen=True)
class Requests:
    """What two models are compared on."""

    said: str
    """In words, for the report."""
    items: Sequence[Feeds]
    rows: int
    """How many different rows they have together."""

    @classmethod
    def of(cls, source: Source, examples: Path | None, seed: int) -> "Requests":
        """Return the requests of a file of examples, or random ones.

        Raises:
            InvalidArgument: The examples do not fit the model.
        """
        if examples is not None:
            found = arrays.read_examples(examples)
            items = list(arrays.requests_of(found, source.inputs))
            return cls(
                examples.name, items, arrays.rows_of(list(arrays.slices(found, source.inputs)))
            )
        items = list(arrays.random_requests(source.inputs, seed))
        return cls(f"random numbers, seed {seed}", items, arrays.rows_of(items))


def compare(
    source: Source,
    made: OnnxSource,
    requests: Requests,
    tolerance: Tolerance,
    how: Literal["convert", "quantize dynamic", "quantize static"],
) -> Parity:
    """Return how far two models are apart on the same requests.

    Raises:
        FailedPrecondition: They have other inputs or outputs.
    """
    old: dict[str, list[NDArray[Any]]] = {}
    new: dict[str, list[NDArray[Any]]] = {}
    for feeds in requests.items:
        expected, found = source.run(feeds), made.run(feeds)
        if expected.keys() != found.keys():
            raise FailedPrecondition(
                f"the ONNX model gives {', '.join(found)}, its source {', '.join(expected)}"
            )
        for name, array in expected.items():
            old.setdefault(name, []).append(array)
            new.setdefault(name, []).append(found[name])
    outputs = {name: arrays.compare(old[name], new[name], tolerance) for name in old}
    return Parity(
        made=how,
        source=source.name[-256:],
        source_sha256=source.sha256,
        opset=made.opset,
        inputs=requests.said[-256:],
        rows=requests.rows,
        tolerance=tolerance,
        outputs=outputs,
        passed=all(item.passed for item in outputs.values()),
    )


def race(source: Source, made: Source, requests: Requests) -> tuple[Speed, ...]:
    """Return how fast both are, for the smallest and the largest request."""
    sized = {arrays.rows_of([feeds]): feeds for feeds in requests.items}
    return tuple(
        _race(source, made, sized[rows], rows) for rows in sorted({min(sized), max(sized)})
    )


def _race(source: Source, made: Source, feeds: Feeds, rows: int) -> Speed:
    source.run(feeds)
    made.run(feeds)
    times: tuple[list[float], list[float]] = ([], [])
    until = time.perf_counter() + RACE_S
    while len(times[0]) < RACE_CALLS_MAX and (
        len(times[0]) < RACE_CALLS or time.perf_counter() < until
    ):
        for model, taken in zip((source, made), times, strict=True):
            begun = time.perf_counter()
            model.run(feeds)
            taken.append((time.perf_counter() - begun) * 1000)
    old, new = (round(median(taken), 4) for taken in times)
    return Speed(rows=rows, calls=len(times[0]), source_ms=old, model_ms=new)


def rows_are_kept(made: OnnxSource, requests: Requests) -> bool:
    """Tell whether requests may be joined: every input and output has one row for each row."""
    tensors = (*made.inputs, *made.outputs)
    if not made.inputs or not all(t.shape and isinstance(t.shape[0], str) for t in tensors):
        return False
    for feeds in requests.items:
        counts = {len(array) for array in (*feeds.values(), *made.run(feeds).values())}
        if len(counts) != 1:
            return False
    return True


def complaints(parity: Parity) -> Iterator[str]:
    """Yield what is wrong with each output that is not within the tolerance."""
    allowed = parity.tolerance
    for name, output in parity.outputs.items():
        if output.passed:
            continue
        if not output.elements:
            yield f"'{name}' has another shape"
        elif output.cosine is None and output.mean_abs is None:
            yield f"'{name}': {output.differing} of {output.elements} elements differ"
        elif output.differing:
            yield (
                f"'{name}': {output.differing} of {output.elements} numbers are off by more than "
                f"{allowed.atol:g} + {allowed.rtol:g} of the value, the worst by "
                f"{output.max_abs:.3g}"
            )
        else:
            yield f"'{name}': cosine {output.cosine} is below {allowed.cosine_min:g}"


def refuse(what: str, reasons: Sequence[str]) -> None:
    """Refuse to write a model.

    Raises:
        FailedPrecondition: There are reasons.
    """
    if reasons:
        raise FailedPrecondition(f"{what} is not written: {'; '.join(reasons)}")


def check_tolerance(tolerance: Tolerance) -> None:
    """Refuse a tolerance under which nothing could fail."""
    if tolerance.atol is None and tolerance.cosine_min <= -1:
        raise InvalidArgument("a tolerance is needed: a cosine above -1, or atol")
