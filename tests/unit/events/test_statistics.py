"""Statistics of nodes: the same rows however the log was read."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from events.catalog import SHORT_NAMES, Event
from events.codec import RawEvent
from events.statistics import Statistics, counted
from events.subjects import RunKey
from tests.conformance.golden.make import histories


Row = tuple[RunKey, int, str, list[RawEvent] | None]


def raw(event: Event) -> RawEvent:
    """Return an event as projections see it."""
    return SHORT_NAMES[type(event)], event.model_dump()


def log() -> list[Row]:
    """Return every golden history, commits of different runs mixed, one of them retired."""
    dice = random.Random(7)
    left = {name: [raw(event) for event in events] for name, events in histories().items()}
    rows: list[Row] = []
    while left:
        name = dice.choice(sorted(left))
        part, left[name] = left[name][:2], left[name][2:]
        rows.append((RunKey("default", name), len(rows) + 1, "w", part))
        if not left[name]:
            del left[name]
    return [*rows, (RunKey("default", "failed"), len(rows) + 1, "", None)]


@pytest.fixture
def whole() -> Iterator[Statistics]:
    """All of it at once."""
    statistics = Statistics(":memory:")
    statistics.begin("now", 10_000)
    statistics.apply(log())
    yield statistics
    statistics.close()


def test_bit_by_bit_is_all_at_once(whole: Statistics, tmp_path: Path) -> None:
    """In pieces, with repeats, over restarts: the same to the bit."""
    dice = random.Random(8)
    rows, place = log(), 0
    while place < len(rows):
        statistics = Statistics(tmp_path / "s.sqlite")
        statistics.begin("now", 10_000)
        size = dice.randrange(1, 9)
        statistics.apply(rows[max(0, place - 3) : place + size])
        place += size
        statistics.close()
    again = Statistics(tmp_path / "s.sqlite")
    assert (whole.position, whole.digest()) == (again.position, again.digest())
    again.begin("another log", 10_000)
    assert (0, []) == (again.position, again.nodes("default", None, 10))
    again.close()


def test_the_order_of_different_runs_does_not_show(whole: Statistics) -> None:
    """Counts and whole microseconds only."""
    rows = sorted(log(), key=lambda row: (row[3] is None, row[0].run_id))
    other = Statistics(":memory:")
    other.begin("now", 10_000)
    other.apply((row[0], number, row[2], row[3]) for number, row in enumerate(rows, 1))
    assert whole.digest() == other.digest()
    other.close()


def test_a_retired_run_takes_its_rows_along(whole: Statistics) -> None:
    """As it takes its commits out of the log."""
    without = Statistics(":memory:")
    without.begin("now", 10_000)
    without.apply([row for row in log() if row[0].run_id != "failed"])
    assert whole.digest() == without.digest()
    without.close()


def test_iterations_count_under_one_path() -> None:
    """And models apart; a node that was kept did not run."""
    counts = counted(raw(event) for event in histories()["foreach_around_a_loop"])
    assert 6 == counts["each/grow/add", "echo"][1]
    counts = counted(raw(event) for event in histories()["fork_keeps_and_runs"])
    assert (0, 1) == (counts["a", "echo"][1], counts["a", "echo"][2])


def test_what_a_node_did(whole: Statistics) -> None:
    """Attempts, results, failures, and its models."""
    nodes = {node.node: node for node in whole.nodes("default", "w", 100)}
    transcribe = nodes["transcribe"]
    assert (6, 3) == (transcribe.scheduled, transcribe.retried + transcribe.failed)
    assert ["demo/transcribe"] == [model.model for model in transcribe.models]
    assert transcribe.compute_us == sum(model.compute_us for model in transcribe.models)
    assert [] == whole.nodes("default", "another", 100)
    assert 1 == len(whole.nodes("default", None, 1))
