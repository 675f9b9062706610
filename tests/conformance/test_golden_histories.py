"""Golden histories and stored bytes: what was once written reads the same for ever."""

import base64
from pathlib import Path

import orjson
import pytest
from eventsourcing.persistence import StoredEvent

from events.catalog import EVENT_TYPES
from events.codec import COMMIT_TOPIC, CommitMapper
from events.evolve import fold
from events.keys import cipher_of
from tests.conformance.golden.make import HERE, STORED, histories, read_history, write_missing


HISTORIES = sorted(path for path in HERE.glob("*.jsonl") if path not in STORED)
LINES = [orjson.loads(line) for path in STORED for line in path.read_bytes().splitlines()]


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
def test_history_folds_to_its_recorded_state(path: Path) -> None:
    """A history of any age folds to the state that was recorded with it."""
    events, folded = read_history(path)
    assert folded == fold(events)


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("completed_parallel_join", "completed"),
        ("retried_then_completed", "completed"),
        ("failed", "failed"),
        ("timed_out", "failed"),
        ("rejected", "rejected"),
        ("cancelled", "cancelled"),
        ("saga_compensates_on_cancel", "cancelled"),
        ("foreach_around_a_loop", "completed"),
        ("fork_keeps_and_runs", "completed"),
    ],
)
def test_histories_end_as_their_names_say(name: str, status: str) -> None:
    """Each golden history is finished, in the way it stands for."""
    assert status == read_history(HERE / f"{name}.jsonl")[1].status


def test_every_type_of_event_is_in_a_history() -> None:
    """A new type of event brings a golden history."""
    lines = [orjson.loads(line) for path in HISTORIES for line in path.read_bytes().splitlines()]
    assert EVENT_TYPES.keys() == {line["type"] for line in lines if "type" in line}


@pytest.mark.parametrize("line", LINES, ids=lambda line: f"{line['history']}-{len(line['key'])}")
def test_stored_bytes_decode(line: dict[str, str]) -> None:
    """Bytes of the first codec, in clear and under a key, give the events they were made of."""
    key = base64.b64decode(line["key"])
    mapper = CommitMapper(cipher_of(key) if key else None)
    stored = StoredEvent(
        line["originator_id"],
        int(line["originator_version"]),
        COMMIT_TOPIC,
        bytes.fromhex(line["hex"]),
    )
    commit = mapper.to_domain_event(stored)
    events, folded = read_history(HERE / f"{line['history']}.jsonl")
    assert (line["commit_id"], line["originator_id"]) == (commit.commit_id, commit.originator_id)
    assert events == list(commit.events)
    assert folded == fold(commit.events)


def test_nothing_is_missing_and_nothing_is_overwritten(tmp_path: Path) -> None:
    """The script writes what is missing and leaves what is there, whatever it holds."""
    names = {f"{name}.jsonl" for name in histories()} | {path.name for path in STORED}
    assert names <= {path.name for path in HERE.glob("*.jsonl")}
    (tmp_path / "failed.jsonl").write_bytes(b"of old")
    assert names - {"failed.jsonl"} == set(write_missing(tmp_path))
    assert b"of old" == (tmp_path / "failed.jsonl").read_bytes()
    assert [] == write_missing(tmp_path)
