"""Messages between services."""

import ormsgpack
import pytest

from schemas.errors import InvalidArgument
from schemas.messages import Fault, Task, TaskResult, Timings, pack, unpack


TASK = Task(
    tenant="default",
    run_id="r1",
    node_id="asr",
    attempt=1,
    model="whisper-large",
    params={"language": "en"},
    inputs={"audio": {"$binary": {"media_type": "audio/wav", "data": b"RIFF\x00\xff"}}},
    scheduled_at=1.5,
    deadline=31.5,
    correlation_id="c",
)
RESULT = TaskResult(
    tenant="default",
    run_id="r1",
    node_id="asr",
    attempt=1,
    error=Fault(code="UNAVAILABLE", message="no worker", retryable=True),
    model="whisper-large",
    worker="audio-1",
    timings=Timings(queue_ms=1.0),
)


def test_task_round_trip() -> None:
    """A task comes back as it was, bytes as bytes."""
    assert TASK == unpack(Task, pack(TASK))


def test_result_round_trip() -> None:
    """So does a result."""
    assert RESULT == unpack(TaskResult, pack(RESULT))


def test_unknown_fields_are_ignored() -> None:
    """A neighbour one version ahead may send more."""
    body = ormsgpack.packb({**TASK.model_dump(), "new_field": 1})
    assert TASK == unpack(Task, body)


def test_missing_field_is_refused() -> None:
    """What cannot be defaulted must be there."""
    document = TASK.model_dump()
    del document["node_id"]
    with pytest.raises(InvalidArgument, match="not a Task"):
        unpack(Task, ormsgpack.packb(document))


@pytest.mark.parametrize("body", [b"", b"\xc1", b"{}", b"\x91", ormsgpack.packb([1]), b"\xff" * 9])
def test_other_bytes_are_refused(body: bytes) -> None:
    """Bytes that are no message raise ours, never the library's error."""
    with pytest.raises(InvalidArgument):
        unpack(Task, body)
