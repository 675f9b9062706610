"""The run index as evidence: how far each run and the whole log were seen."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from events.index import RunIndex
from events.store import RETIRED
from events.subjects import RunKey
from schemas.messages import Header


@pytest.fixture
def index() -> Iterator[RunIndex]:
    """An empty index in memory."""
    index = RunIndex(":memory:")
    yield index
    index.close()


def record(index: RunIndex, key: RunKey, sequence: int, version: int) -> None:
    """Record a commit."""
    headers = {Header.VERSION: str(version), Header.STATUS: "running", Header.WORKFLOW: "w"}
    index.apply(key, sequence, headers, float(sequence))


def test_it_knows_how_far_each_run_was_seen(index: RunIndex) -> None:
    """An older commit changes nothing; a retired run is forgotten, its sequence is not."""
    key = RunKey("default", "r")
    assert (0, 0) == (index.commits(key), index.position)
    record(index, key, 7, 2)
    record(index, key, 3, 1)
    assert (2, 7) == (index.commits(key), index.position)
    index.apply(key, 9, {RETIRED: "5.0"}, 5.0)
    assert (0, 9) == (index.commits(key), index.position)


def test_runs_are_walked_backwards(index: RunIndex) -> None:
    """Every run once, over tenants, in pages."""
    keys = [RunKey(tenant, f"r{number}") for tenant in ("a", "b") for number in range(3)]
    for sequence, key in enumerate(keys, start=1):
        record(index, key, sequence, 1)
    walked: list[RunKey] = []
    while page := index.backwards(walked[-1] if walked else None, 4):
        walked += page
    assert keys[::-1] == walked


def test_reset_forgets_everything(index: RunIndex) -> None:
    """As before the first commit."""
    record(index, RunKey("default", "r"), 7, 2)
    index.reset()
    assert ([], 0, ("", 0)) == (index.runs("default"), index.position, index.checkpoint())


def test_the_order_of_arrival_does_not_show(index: RunIndex) -> None:
    """An orchestrator's own commits come before those it follows; the rows are the log's."""
    keys = [RunKey("default", name) for name in "abc"]
    log = [(keys[number % 3], number + 1, number // 3 + 1) for number in range(12)]
    for key, sequence, version in log:
        record(index, key, sequence, version)
    other = RunIndex(":memory:")
    for key, sequence, version in reversed(log):
        headers = {Header.VERSION: str(version), Header.STATUS: "running", Header.WORKFLOW: "w"}
        other.apply(key, sequence, headers, sequence + 0.25)  # by another clock
    for key, sequence, version in log:
        record(other, key, sequence, version)
    assert index.digest() == other.digest()
    other.close()


@dataclass(frozen=True)
class Commit:
    """A commit as the index sees it."""

    key: RunKey
    sequence: int
    headers: dict[str, str]
    at: float


def test_a_batch_is_its_commits_one_by_one(index: RunIndex) -> None:
    """Also where runs begin, end and retire within it."""
    dice = random.Random(3)
    versions: dict[str, int] = {}
    log: list[Commit] = []
    for sequence in range(1, 400):
        name = dice.choice("abcdefgh")
        if versions.get(name, 0) < 0:
            continue
        retires = versions.get(name, 0) > 3 and dice.random() < 0.1
        versions[name] = -1 if retires else versions.get(name, 0) + 1
        headers = {Header.VERSION: str(abs(versions[name])), Header.STATUS: f"s{sequence}"}
        if retires:
            headers = {RETIRED: "1.0", Header.VERSION: "9"}
        log.append(Commit(RunKey("default", name), sequence, headers, sequence / 8))
    for commit in log:
        index.apply(commit.key, commit.sequence, commit.headers, commit.at)
    other = RunIndex(":memory:")
    while log:
        size = dice.randrange(1, 40)
        batch, log = log[:size], log[size:]
        other.record(batch)
    assert (index.position, index.digest()) == (other.position, other.digest())
    other.close()
