"""Comparing runs: where they part, and how far; and sums over many of them."""

import base64
import math
import random
import struct
from typing import Any

import pytest

from clawdbot.comparison import blobs_to_compare, compare
from clawdbot.distances import cosine, edit_distance, elements, max_abs, similarity
from clawdbot.regression import Trial, check_bounds, summarise
from clawdbot.results import Run
from schemas.errors import InvalidArgument
from schemas.values import Tensor


def run(run_id: str = "a", *, status: str = "completed", **nodes: Any) -> Run:
    """Return a run; each node is its outputs, or a view's fields."""
    views = [
        {"id": name.replace("__", "[0]/"), "status": "completed", "model": "echo", "outputs": given}
        for name, given in nodes.items()
    ]
    last = views[-1] if views else {"id": "", "outputs": {}}
    document = {
        "run_id": run_id,
        "status": status,
        "workflow": "w",
        "version": 1,
        "inputs": {},
        "nodes": views,
        "outputs": {last["id"]: last["outputs"]},
        "started_at": 0.0,
        "updated_at": 1.0,
        "duration_ms": 1000.0,
    }
    return Run.model_validate(document)


def tensor(*numbers: float) -> dict[str, Any]:
    """Return a tensor as the API shows it."""
    data = base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()
    return {"$tensor": {"datatype": "FP32", "shape": [len(numbers)], "data": data}}


def only(a: Any, b: Any, **options: Any) -> Any:
    """Return the one difference of a field."""
    node = compare(run(n={"x": a}), run("b", n={"x": b}), **options).nodes[0]
    assert 1 == len(node.differences)
    return node.differences[0]


def slow_distance(left: str, right: str) -> int:
    """Return the edit distance, by the book."""
    row = list(range(len(right) + 1))
    for i, one in enumerate(left, 1):
        previous, row[0] = row[0], i
        for j, other in enumerate(right, 1):
            cost = previous + (one != other)
            previous, row[j] = row[j], min(cost, row[j] + 1, row[j - 1] + 1)
    return row[-1]


def test_the_edit_distance_is_that_of_the_book() -> None:
    """Over random texts of few letters, so that all cases come."""
    dice = random.Random(5)
    for _ in range(500):
        left, right = ("".join(dice.choices("abc", k=dice.randrange(12))) for _ in range(2))
        assert slow_distance(left, right) == edit_distance(left, right), (left, right)
    long = "".join(dice.choices("abcd", k=300))
    assert slow_distance(long, long[40:] + "xy") == edit_distance(long, long[40:] + "xy")


@pytest.mark.parametrize(
    ("left", "right", "expected"), [("", "", 1.0), ("a", "", 0.0), ("kitten", "sitting", 4 / 7)]
)
def test_similarity(left: str, right: str, expected: float) -> None:
    """1 for the same, 0 for nothing in common."""
    assert expected == pytest.approx(similarity(left, right))


def test_vectors() -> None:
    """Largest difference and cosine, with what is no number."""
    assert 2.0 == max_abs([1, 2, 3], [1, 4, 3])
    assert 0.0 == max_abs([math.nan, math.inf], [math.nan, math.inf])
    assert math.inf == max_abs([math.nan], [1.0])
    assert 0.0 == cosine([1, 0], [0, 1])
    assert pytest.approx(1.0) == cosine([1, 2], [2, 4])
    assert cosine([0, 0], [1, 1]) is None
    assert elements(Tensor(datatype="FP32", shape=(2,), data=b"1234")) is None
    assert elements(Tensor(datatype="BYTES", shape=(2,), data=b"1234")) is None
    assert (1, 2) == elements(Tensor(datatype="UINT8", shape=(2,), data=b"\x01\x02"))


def test_the_same_run_twice_is_the_same() -> None:
    """Whoever ran it, and however long it took."""
    found = compare(run(n={"x": 1}, m={"y": [1.5]}), run("b", n={"x": 1}, m={"y": [1.5]}))
    assert (True, None) == (found.same, found.first)


def test_the_first_node_that_differs_is_the_first_of_the_graph() -> None:
    """What is inside of a control node comes before it."""
    a = run(one={"x": 1}, each={"items": [1]}, each__say={"text": "a"}, last={"text": "a"})
    b = run("b", one={"x": 1}, each={"items": [2]}, each__say={"text": "b"}, last={"text": "b"})
    found = compare(a, b)
    assert (False, "each[0]/say") == (found.same, found.first)
    assert ["one", "each[0]/say", "each", "last"] == [node.node for node in found.nodes]


def test_each_kind_of_value_by_its_own_measure() -> None:
    """Texts by edits, numbers by their difference, tensors by elements, bytes by digest."""
    text = only("good day", "good night")
    assert ("text", "x") == (text.kind, text.path)
    assert 0 < text.similarity < 1
    number = only(1.0, 1.5)
    assert ("number", 0.5) == (number.kind, number.max_abs)
    vector = only([1.0, 0.0], [0.0, 1.0])
    assert ("vector", 1.0, 0.0) == (vector.kind, vector.max_abs, vector.cosine)
    dense = only(tensor(1, 2), tensor(1, 4))
    assert ("tensor", 2.0) == (dense.kind, dense.max_abs)
    shaped = only(tensor(1, 2), tensor(1, 2, 3))
    assert ("tensor", None, [3]) == (shaped.kind, shaped.max_abs, shaped.b["shape"])
    inline = only(
        {"$binary": {"media_type": "audio/wav", "data": "AAAA"}},
        {"$binary": {"media_type": "audio/wav", "data": "AAAB"}},
    )
    assert ("binary", 3) == (inline.kind, inline.a["size_bytes"])
    deep = only({"k": [{"t": "a"}]}, {"k": [{"t": "b"}]})
    assert "x.k[0].t" == deep.path
    assert ("missing", "x.k") == (only({"k": 1}, {}).kind, only({"k": 1}, {}).path)
    assert "value" == only("1", 1).kind
    assert "value" == only([1], [1, 2]).kind


def test_tolerance_is_for_numbers() -> None:
    """What is close enough is equal; texts never are."""
    assert compare(run(n={"x": 1.0}), run("b", n={"x": 1.001}), tolerance=0.01).same
    assert compare(
        run(n={"x": tensor(1, 2)}), run("b", n={"x": tensor(1, 2.001)}), tolerance=0.01
    ).same
    assert not compare(run(n={"x": "a"}), run("b", n={"x": "b"}), tolerance=9).same


def test_tensors_in_blobs_are_looked_into() -> None:
    """Where the bytes are at hand; else their digests differ."""

    def stored(digit: str) -> dict[str, Any]:
        kind = "application/vnd.clawdbot.tensor;datatype=FP32;shape=2"
        return {"$blob": {"media_type": kind, "size_bytes": 8, "sha256": digit * 64}}

    a, b = run(n={"x": stored("a")}), run("b", n={"x": stored("b")})
    assert {"a" * 64, "b" * 64} == blobs_to_compare(a, b)
    blobs = {"a" * 64: struct.pack("<2f", 1, 2), "b" * 64: struct.pack("<2f", 1, 3)}
    found = only(stored("a"), stored("b"), blobs=blobs)
    assert ("tensor", 1.0) == (found.kind, found.max_abs)
    found = only(stored("a"), stored("b"))
    assert ("blob", "a" * 64) == (found.kind, found.a["sha256"])
    plain = {"$blob": {"media_type": "audio/wav", "size_bytes": 8, "sha256": "c" * 64}}
    assert set() == blobs_to_compare(run(n={"x": plain}), run("b", n={"x": stored("b")}))


def test_a_node_that_is_in_one_run_only_differs() -> None:
    """And so does a run that ended differently."""
    found = compare(run(n={"x": 1}), run("b", n={"x": 1}, m={}))
    assert (False, "m", (None, "completed")) == (found.same, found.first, found.nodes[1].status)
    found = compare(run(n={"x": 1}), run("b", status="failed", n={"x": 1}))
    assert (False, None) == (found.same, found.first)


def trial(a: Any, b: Any, **options: Any) -> Trial:
    """Return a trial of a run with one node and one output."""
    old, new = run("a", n={"x": a}), run("b", n={"x": b}, **options)
    return Trial(old, "b", compare(old, new))


def test_a_regression_counts_agreement_by_field() -> None:
    """Runs that agree, that differ, that failed, that could not be forked."""
    found = summarise(
        "w",
        {"n.model": "m"},
        [
            trial("yes", "yes"),
            trial("yes", "yet"),
            trial("yes", "", status="failed"),
            Trial(run("c", n={"x": "yes"}), error="no such model"),
        ],
    )
    assert (4, 2, 1, 1, 1) == (
        found.runs,
        found.compared,
        found.agreed,
        found.failed,
        found.unforked,
    )
    assert [("n.x", 2, 1)] == [(item.field, item.compared, item.agreed) for item in found.fields]
    assert (1 + 2 / 3) / 2 == pytest.approx(found.fields[0].similarity)
    assert (("a", "b"), ("a", "b")) == found.differing
    assert (("c", "no such model"),) == found.errors


@pytest.mark.parametrize(("last", "parallel"), [(0, 1), (10_001, 1), (1, 0), (1, 65)])
def test_a_regression_has_bounds(last: int, parallel: int) -> None:
    """Neither none nor too many."""
    with pytest.raises(InvalidArgument):
        check_bounds(last, parallel)
