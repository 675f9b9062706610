"""Writes golden histories that are missing; never touches one that is there.

Run from the repository root: `python -m tests.conformance.golden.make`.

Each `<name>.jsonl` holds one line per event, `{"type", "version", "state"}`, and a last line
`{"folded"}`: the state they fold to. `commits.v*.jsonl` hold stored bytes, one commit a line:
`{"originator_id", "originator_version", "key", "hex", "commit_id", "history"}`, where `key` is the
base64 of the AES key, or empty, and `history` names the file with the same events.
"""

import base64
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson
from pydantic import TypeAdapter

from events.catalog import EVENT_TYPES, SHORT_NAMES, DomainEvent, Event, RunRejected
from events.codec import Commit, CommitMapper
from events.commands import CancelRun, CheckClock, Command, RecordResult, StartRun
from events.evolve import fold
from events.keys import cipher_of
from events.run import decide
from events.state import RunState
from schemas.messages import Fault, TaskResult, Timings
from schemas.plan import Binding, Plan, PlanNode
from schemas.workflow import RetryPolicy
from tests.support.scenarios import scenarios


HERE = Path(__file__).parent
STORED = (HERE / "commits.v1.jsonl", HERE / "commits.v2.jsonl")
"""Of the first histories, and of those of control structures."""
STATE = TypeAdapter(RunState)
BLOB = {"media_type": "audio/wav", "size_bytes": 96044, "sha256": "5e" * 32}


def read_history(path: Path) -> tuple[list[Any], RunState]:
    """Return a golden history's events, through their upcasters, and its recorded state."""
    *lines, last = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    events = [_event(line["type"], line["version"], line["state"]) for line in lines]
    return events, STATE.validate_python(last["folded"])


def _event(name: str, version: int, state: dict[str, Any]) -> DomainEvent:
    kind = EVENT_TYPES[name]
    for older in range(version, kind.class_version):
        getattr(kind, f"upcast_v{older}_v{older + 1}")(state)
    return kind.model_validate(state)


def write_missing(directory: Path = HERE) -> list[str]:
    """Write what is missing under `directory`; return the names of the new files."""
    made: list[str] = []
    for name, events in histories().items():
        path = directory / f"{name}.jsonl"
        if not path.exists():
            path.write_bytes(_history(events))
            made.append(path.name)
    for stored, made_of in zip(STORED, (_first_histories(), _control_histories()), strict=True):
        path = directory / stored.name
        if not path.exists():
            path.write_bytes(_stored(made_of))
            made.append(path.name)
    return made


def histories() -> dict[str, list[Event]]:
    """Return realistic histories, by name."""
    return {**_first_histories(), **_control_histories()}


def _control_histories() -> dict[str, list[Event]]:
    return {name: play.log for name, play in scenarios().items()}


def _first_histories() -> dict[str, list[Event]]:
    started = StartRun(
        workflow="meeting",
        version=3,
        digest="d1" * 32,
        plan=_plan(),
        inputs={"audio": {"$blob": BLOB}, "text": "Grüße, 世界"},
        inputs_digest="1d" * 32,
        correlation_id="01JDGOLDEN0000000000000000",
        at=1_764_000_000.0,
    )
    fault = Fault(code="UNAVAILABLE", message="the worker went away", retryable=True)
    broken = Fault(code="INVALID_ARGUMENT", message="not audio", field="audio")
    transcript = {"text": "hello", "segments": [{"start_s": 0.0, "end_s": 1.5, "text": "hello"}]}
    return {
        "completed_parallel_join": _decide(
            started,
            _answer("caption", 1, 0.4, {"text": "a cat"}),
            _answer("transcribe", 1, 1.5, transcript),
            _answer("join", 1, 1.6, {"text": "hello, a cat"}),
        ),
        "retried_then_completed": _decide(
            started,
            _answer("transcribe", 1, 0.5, fault),
            CheckClock(at=1_764_000_001.0),
            _answer("transcribe", 1, 1.1, {"text": "too late, of the attempt before"}),
            _answer("transcribe", 2, 2.5, transcript),
            _answer("caption", 1, 2.6, {"text": "a cat"}),
            _answer("join", 1, 2.7, {"text": "hello, a cat"}),
        ),
        "failed": _decide(started, _answer("transcribe", 1, 0.5, broken)),
        "timed_out": _decide(
            started,
            _answer("caption", 1, 0.4, {"text": "a cat"}),
            *[CheckClock(at=1_764_000_000.0 + after) for after in (30.0, 31.0, 61.5)],
        ),
        "rejected": [
            RunRejected(
                at=1_764_000_000.0,
                workflow="nobody-deployed-this",
                inputs_digest="1d" * 32,
                error=Fault(code="NOT_FOUND", message="no such workflow", field="workflow"),
            )
        ],
        "cancelled": _decide(
            started,
            _answer("caption", 1, 0.4, {"text": "a cat"}),
            CancelRun(reason="the user closed the page", at=1_764_000_000.9),
        ),
    }


def _plan() -> Plan:
    def node(name: str, *sources: str, **bindings: Binding) -> PlanNode:
        return PlanNode(
            id=name,
            model=f"demo/{name}",
            modality="text",
            params={"temperature": 0.0},
            sources=sources,
            bindings=bindings,
            timeout_s=30.0,
            retry=RetryPolicy(max_attempts=2, initial_delay_s=0.5),
        )

    return Plan(
        nodes=(
            node("transcribe", audio=Binding(node="input", output="audio")),
            node("caption", text=Binding(node="input", output="text")),
            node(
                "join",
                "transcribe",
                "caption",
                left=Binding(node="transcribe", output="text"),
                right=Binding(node="caption", output="text"),
            ),
        ),
        outputs=("join",),
    )


def _answer(name: str, attempt: int, after_s: float, how: Fault | dict[str, Any]) -> RecordResult:
    fault = how if isinstance(how, Fault) else None
    result = TaskResult(
        tenant="default",
        run_id="golden",
        node_id=name,
        attempt=attempt,
        outputs=None if isinstance(how, Fault) else how,
        error=fault,
        model=f"demo/{name}",
        worker="worker-1",
        timings=Timings(queue_ms=1.5, load_ms=0.0, compute_ms=after_s * 1000),
    )
    return RecordResult(result, 1_764_000_000.0 + after_s)


def _decide(*commands: Command) -> list[Event]:
    state: RunState | None = None
    events: list[Event] = []
    for command in commands:
        decided = decide(state, command)
        state = fold(decided, state)
        events += decided
    return events


def _history(events: Iterable[Event]) -> bytes:
    listed = list(events)
    folded = fold(listed)
    assert folded is not None
    lines: list[Any] = [
        {
            "type": SHORT_NAMES[type(item)],
            "version": type(item).class_version,
            "state": item.model_dump(mode="json"),
        }
        for item in listed
    ]
    lines.append({"folded": STATE.dump_python(folded, mode="json")})
    return b"".join(orjson.dumps(line) + b"\n" for line in lines)


def _stored(made_of: dict[str, list[Event]]) -> bytes:
    lines: list[bytes] = []
    for key in (b"", bytes(range(32))):
        mapper = CommitMapper(cipher_of(key) if key else None)
        for name, events in made_of.items():
            commit = Commit(
                originator_id=f"default.{name}",
                originator_version=1,
                commit_id=f"commit-{name}",
                events=tuple(events),
            )
            document = {
                "originator_id": commit.originator_id,
                "originator_version": 1,
                "key": base64.b64encode(key).decode(),
                "hex": mapper.to_stored_event(commit).state.hex(),
                "commit_id": commit.commit_id,
                "history": name,
            }
            lines.append(orjson.dumps(document) + b"\n")
    return b"".join(lines)


if __name__ == "__main__":
    sys.stdout.write("".join(f"{name}\n" for name in write_missing()))
