"""Two runs side by side: where they part, and how far. Pure.

Runs are the same when they end alike and every node gave the same; who ran a node, and how long it
took, is shown and does not count.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Literal

from clawdbot.distances import cosine, elements, max_abs, similarity
from clawdbot.results import Run, value_of
from events.spill import restore_blob
from schemas.api import NodeView
from schemas.errors import ClawdbotError
from schemas.message import Message
from schemas.values import Binary, BlobRef, Special, Tensor, special_key


DIFFERENCES_MAX = 1_000
"""Fields of one node that a comparison lists."""
VECTOR_MIN = 2

Kind = Literal["missing", "text", "number", "vector", "tensor", "blob", "binary", "value"]
Blobs = Mapping[str, bytes]
"""Bytes by SHA-256, as far as they are at hand."""


class Difference(Message):
    """One field that differs."""

    path: str
    kind: Kind
    a: Any = None
    """Its value; of bytes what they are, not the bytes."""
    b: Any = None
    similarity: float | None = None
    """Of texts: 1 - edit distance / length of the longer, in [0, 1]."""
    max_abs: float | None = None
    """Of numbers, vectors and tensors: the largest difference."""
    cosine: float | None = None
    """Of vectors and tensors, in [-1, 1]."""


class NodeComparison(Message):
    """One node in both runs."""

    node: str
    same: bool
    status: tuple[str | None, str | None]
    """In a and b; None where it is not."""
    model: tuple[str | None, str | None]
    kept: tuple[bool, bool]
    """Whether a fork took it over instead of running it."""
    total_ms: tuple[float | None, float | None]
    """From its decision to its result."""
    compute_ms: tuple[float | None, float | None]
    gave: tuple[str, ...] = ()
    """Names of its outputs in either run."""
    differences: tuple[Difference, ...] = ()


class Comparison(Message):
    """Two runs."""

    a: str
    b: str
    same: bool
    """Whether they ended alike and every node gave the same."""
    status: tuple[str, str]
    duration_ms: tuple[float, float]
    first: str | None
    """The first node, in the order of the graph, that differs."""
    inputs: tuple[Difference, ...]
    nodes: tuple[NodeComparison, ...]


def compare(a: Run, b: Run, *, blobs: Blobs | None = None, tolerance: float = 0.0) -> Comparison:
    """Compare two runs.

    Args:
        a: One.
        b: The other.
        blobs: Blobs at hand; tensors among them are compared by their elements.
        tolerance: Numbers that are no further apart than this count as equal.
    """
    comparing = _Comparing(blobs or {}, tolerance)
    mine, theirs = _by_path(a), _by_path(b)
    nodes = tuple(
        comparing.node(path, mine.get(path), theirs.get(path))
        for path in [*mine, *(path for path in theirs if path not in mine)]
    )
    first = next((node.node for node in nodes if not node.same), None)
    return Comparison(
        a=a.run_id,
        b=b.run_id,
        same=first is None and a.status == b.status,
        status=(a.status, b.status),
        duration_ms=(a.duration_ms, b.duration_ms),
        first=first,
        inputs=comparing.values(a.inputs, b.inputs),
        nodes=nodes,
    )


def blobs_to_compare(a: Run, b: Run) -> set[str]:
    """Return the SHA-256 of the blobs that a comparison would look into: tensors that differ."""
    comparing = _Comparing({}, 0.0)
    mine, theirs = _by_path(a), _by_path(b)
    for path in mine.keys() & theirs.keys():
        comparing.node(path, mine[path], theirs[path])
    return comparing.wanted


def _by_path(run: Run) -> dict[str, NodeView]:
    """Return the nodes in the order of the graph, what is inside of a control node before it."""
    inside: dict[str, list[NodeView]] = {}
    for node in run.nodes:
        inside.setdefault(node.id.partition("[")[0], []).append(node)
    return {
        node.id: node
        for group in inside.values()
        for node in sorted(group, key=lambda node: "[" not in node.id)
    }


class _Comparing:
    def __init__(self, blobs: Blobs, tolerance: float) -> None:
        self._blobs = blobs
        self._tolerance = tolerance
        self.wanted: set[str] = set()

    def node(self, path: str, a: NodeView | None, b: NodeView | None) -> NodeComparison:
        differences = self.values(_gave(a), _gave(b)) if a and b else ()
        statuses = (None if a is None else a.status, None if b is None else b.status)
        return NodeComparison(
            node=path,
            same=statuses[0] == statuses[1] and not differences,
            status=statuses,
            model=(None if a is None else a.model, None if b is None else b.model),
            kept=(bool(a and a.kept_from), bool(b and b.kept_from)),
            total_ms=(_total_ms(a), _total_ms(b)),
            compute_ms=(_compute_ms(a), _compute_ms(b)),
            gave=tuple(sorted({*_outputs(a), *_outputs(b)})),
            differences=differences,
        )

    def values(self, a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[Difference, ...]:
        return tuple(islice(self._object("", a, b), DIFFERENCES_MAX))

    def _value(self, path: str, a: Any, b: Any) -> Iterator[Difference]:
        if a == b:
            return
        if special_key(a) or special_key(b):
            yield from self._special(path, a, b)
        elif isinstance(a, dict) and isinstance(b, dict):
            yield from self._object(path, a, b)
        elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
            yield from self._list(path, a, b)
        else:
            yield from self._scalar(path, a, b)

    def _scalar(self, path: str, a: Any, b: Any) -> Iterator[Difference]:
        if isinstance(a, str) and isinstance(b, str):
            yield Difference(path=path, kind="text", a=a, b=b, similarity=similarity(a, b))
        elif not _number(a) or not _number(b):
            yield Difference(path=path, kind="value", a=a, b=b)
        elif abs(a - b) > self._tolerance:
            yield Difference(path=path, kind="number", a=a, b=b, max_abs=abs(a - b))

    def _list(self, path: str, a: list[Any], b: list[Any]) -> Iterator[Difference]:
        if _vector(a) and _vector(b):
            yield from self._numbers(path, "vector", a, b, (f"[{len(a)}]", f"[{len(b)}]"))
            return
        for index, (one, other) in enumerate(zip(a, b, strict=True)):
            yield from self._value(f"{path}[{index}]", one, other)

    def _object(
        self, path: str, a: Mapping[str, Any], b: Mapping[str, Any]
    ) -> Iterator[Difference]:
        for key in [*a, *(key for key in b if key not in a)]:
            inner = f"{path}.{key}" if path else key
            if key in a and key in b:
                yield from self._value(inner, a[key], b[key])
            else:
                yield Difference(path=inner, kind="missing", a=_brief(a, key), b=_brief(b, key))

    def _special(self, path: str, a: Any, b: Any) -> Iterator[Difference]:
        one, other = _parsed(a), _parsed(b)
        facts = (_described(one), _described(other))
        left, right = self._tensor(one), self._tensor(other)
        if left is not None and right is not None:
            numbers = (elements(left), elements(right))
            if left.shape == right.shape and numbers[0] is not None and numbers[1] is not None:
                yield from self._numbers(path, "tensor", numbers[0], numbers[1], facts)
                return
        kind: Kind = "value"
        if isinstance(one, Tensor) or isinstance(other, Tensor):
            kind = "tensor"
        elif isinstance(one, BlobRef) or isinstance(other, BlobRef):
            kind = "blob"
            self._want(one, other)
        elif isinstance(one, Binary) or isinstance(other, Binary):
            kind = "binary"
        if facts[0] != facts[1]:
            yield Difference(path=path, kind=kind, a=facts[0], b=facts[1])

    def _numbers(
        self, path: str, kind: Kind, a: Sequence[float], b: Sequence[float], facts: tuple[Any, Any]
    ) -> Iterator[Difference]:
        apart = max_abs(a, b)
        if apart > self._tolerance:
            yield Difference(
                path=path, kind=kind, a=facts[0], b=facts[1], max_abs=apart, cosine=cosine(a, b)
            )

    def _tensor(self, value: Special | Any) -> Tensor | None:
        """Return a tensor that is inline, or whose blob is at hand."""
        if isinstance(value, Tensor):
            return value
        if not isinstance(value, BlobRef) or value.sha256 not in self._blobs:
            return None
        try:
            restored = restore_blob(value.media_type, self._blobs[value.sha256])
        except ClawdbotError:
            return None  # its media type is no tensor's: compared as bytes
        return restored if isinstance(restored, Tensor) else None

    def _want(self, *values: Any) -> None:
        refs = [value for value in values if isinstance(value, BlobRef)]
        kinds = {ref.media_type for ref in refs}
        if len(refs) == 2 and len(kinds) == 1 and "tensor" in kinds.pop():  # noqa: PLR2004 - a pair
            self.wanted |= {ref.sha256 for ref in refs}


def _gave(node: NodeView) -> dict[str, Any]:
    """Return what a node gave, its error included."""
    error = {} if node.error is None else {"error": node.error.model_dump()}
    return {**(node.outputs or {}), **error}


def _outputs(node: NodeView | None) -> dict[str, Any]:
    return (node.outputs or {}) if node is not None else {}


def _total_ms(node: NodeView | None) -> float | None:
    if node is None or node.scheduled_at is None or node.finished_at is None:
        return None
    return round((node.finished_at - node.scheduled_at) * 1000, 3)


def _compute_ms(node: NodeView | None) -> float | None:
    return None if node is None or node.timings is None else node.timings.compute_ms


def _parsed(value: Any) -> Special | Any:
    return value_of(value) if special_key(value) else value


def _described(value: Any) -> Any:
    """Return what bytes are: digest and size instead of themselves."""
    match value:
        case BlobRef():
            return value.model_dump()
        case Binary(media_type=media_type, data=data):
            sha256 = hashlib.sha256(data).hexdigest()
            return {"media_type": media_type, "size_bytes": len(data), "sha256": sha256}
        case Tensor(datatype=datatype, shape=shape, data=data):
            sha256 = hashlib.sha256(data).hexdigest()
            return {"datatype": datatype, "shape": list(shape), "sha256": sha256}
        case _:
            return value


def _brief(values: Mapping[str, Any], name: str) -> Any:
    return _described(_parsed(values[name])) if name in values else None


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _vector(value: list[Any]) -> bool:
    return len(value) >= VECTOR_MIN and all(_number(item) for item in value)
