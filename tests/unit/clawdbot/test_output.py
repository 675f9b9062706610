"""What the command line prints, and what its exit status says."""

import pytest

from clawdbot.cli.output import ExitCode, brief, exit_code
from clawdbot.mesh import wanted_workers
from clawdbot.protocol import delay_before, with_data
from schemas.api import WorkflowView
from schemas.errors import (
    AlreadyExists,
    BusUnavailable,
    ClawdbotError,
    DeadlineExceeded,
    EngineFailed,
    InvalidArgument,
    NotFound,
)
from schemas.workflow import parse_definition


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidArgument("x"), ExitCode.INVALID),
        (AlreadyExists("x"), ExitCode.INVALID),
        (NotFound("x"), ExitCode.NOT_FOUND),
        (BusUnavailable("x"), ExitCode.UNAVAILABLE),
        (DeadlineExceeded("x"), ExitCode.TIMEOUT),
        (EngineFailed("x"), ExitCode.RUN_FAILED),
    ],
)
def test_exit_codes(error: ClawdbotError, code: ExitCode) -> None:
    """One for each kind of failure."""
    assert exit_code(error) is code


def test_bytes_are_named_and_long_text_is_cut() -> None:
    """A line stays a line."""
    value = {"a": {"$blob": {"media_type": "audio/wav", "size_bytes": 7, "sha256": "0"}}}
    assert brief(value) == '{"a": "<audio/wav, 7 bytes, stored>"}'
    assert len(brief({"a": "x" * 1000})) == 160


def test_event_streams_are_read_line_by_line() -> None:
    """Comments and unknown fields are skipped, as the standard wants."""
    event: dict[str, str] = {}
    data = '{"id":3,"sequence":9,"commit":2,"type":"RunStarted","at":1.0,"data":{}}'
    lines = [": keep-alive", "retry: 1000", "", "id: 3", "event: RunStarted", f"data: {data}"]
    assert [with_data(line, event) for line in lines] == [None] * 6
    found = with_data("", event)
    assert found is not None
    assert (found.id, found.type) == (3, "RunStarted")
    assert event == {}


def test_waiting_grows_and_is_bounded() -> None:
    """Without a hint of the server."""
    delays = [delay_before(attempt, None) for attempt in range(8)]
    assert delays == sorted(delays)
    assert delays[-1] == 10.0


def test_replicas_are_the_most_that_any_workflow_wishes() -> None:
    """For each modality it uses, up to a bound."""

    def view(replicas: int, *models: str) -> WorkflowView:
        nodes = [
            {"id": f"n{number}", "type": "model", "params": {"model": model}}
            for number, model in enumerate(models)
        ]
        return WorkflowView(
            name="w",
            version=1,
            digest="",
            replicas=replicas,
            warnings=(),
            inputs=(),
            outputs=(),
            deployed_at=0.0,
            definition=parse_definition({"nodes": nodes}),
        )

    wanted = wanted_workers((view(3, "pocketsphinx"), view(2, "pocketsphinx", "echo")), 8)
    assert wanted == {"text": 2, "audio": 3, "vision": 1}
    assert wanted_workers((view(64, "rapidocr"),), 8)["vision"] == 8
