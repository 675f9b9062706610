"""What the command line prints, and what its exit status says."""

from typing import Any

import pytest
from rich.console import Console

from clawdbot.cli.output import (
    ExitCode,
    Screen,
    brief,
    counted,
    event_line,
    exit_code,
    nested,
    run_table,
    step_name,
)
from clawdbot.cli.runs import show_run
from clawdbot.mesh import wanted_workers
from clawdbot.protocol import delay_before, with_data
from clawdbot.results import Run
from schemas.api import EventView, NodePart, NodeView, NodeViewStatus, RunView, WorkflowView
from schemas.catalogue import load
from schemas.errors import (
    AlreadyExists,
    BusUnavailable,
    ClawdbotError,
    DeadlineExceeded,
    EngineFailed,
    InvalidArgument,
    NotFound,
)
from schemas.messages import Fault
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


def event(number: int, kind: str, at: float, **data: Any) -> EventView:
    """Return an event as the API shows it."""
    return EventView(id=number, sequence=number, commit=1, type=kind, at=at, data=data)


@pytest.mark.parametrize(
    ("shown", "line"),
    [
        (
            event(1, "RunStarted", 1.0, workflow="w", version=2, inputs={"text": "hi"}, plan={}),
            '   1        0.0 ms  RunStarted      workflow="w"  version=2  text="hi"',
        ),
        (
            event(2, "NodeScheduled", 1.0, node_id="a", attempt=2, deadline=9.0),
            "   2        0.0 ms  NodeScheduled   a  attempt 2",
        ),
        (
            event(3, "NodeCompleted", 1.5, node_id="a", attempt=1, model="m", outputs={"n": 1}),
            "   3      500.0 ms  NodeCompleted   a  by m  n=1",
        ),
        (
            event(
                4,
                "NodeFailed",
                1.5,
                node_id="a",
                attempt=1,
                error={"code": "UNAVAILABLE", "message": "no worker"},
                retry_at=2.0,
            ),
            "   4      500.0 ms  NodeFailed      a  UNAVAILABLE: no worker  again at 1000.0 ms",
        ),
    ],
)
def test_an_event_is_a_line_for_people(shown: EventView, line: str) -> None:
    """When, what, which node, and what it says; the rest is for --json."""
    assert line == event_line(shown, 1.0)


def test_event_streams_are_read_line_by_line() -> None:
    """Comments and unknown fields are skipped, as the standard wants."""
    event: dict[str, str] = {}
    data = '{"id":3,"sequence":9,"commit":2,"type":"RunStarted","at":1.0,"data":{}}'
    lines = [": keep-alive", "retry: 1000", "", "id: 3", "event: RunStarted", f"data: {data}"]
    assert [with_data(line, event) for line in lines] == [None] * 6
    found = with_data("", event)
    assert isinstance(found, EventView)
    assert (found.id, found.type) == (3, "RunStarted")
    assert event == {}
    part = '{"node":"llm","attempt":1,"part":2,"outputs":{"text":"hi"}}'
    for line in ("event: part", f"data: {part}"):
        assert with_data(line, event) is None
    assert NodePart(node="llm", attempt=1, part=2, outputs={"text": "hi"}) == with_data("", event)


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

    workflows = (view(3, "pocketsphinx"), view(2, "pocketsphinx", "echo"))
    modalities = {name: spec.modality for name, spec in load().models.items()}
    assert wanted_workers(workflows, modalities, 8) == {"text": 2, "audio": 3, "vision": 1}
    assert wanted_workers((view(64, "rapidocr@stable"),), modalities, 8)["vision"] == 8


def node(path: str, status: NodeViewStatus = "completed") -> NodeView:
    """Return a step of a run."""
    return NodeView(id=path, status=status, model="m", scheduled_at=1.0, finished_at=1.5)


def test_steps_inside_a_node_stand_below_it() -> None:
    """In the order they began, two columns deeper at each level."""
    paths = ["out", "z", "out[0]/in", "out[1]/in", "out[0]/in[0]/m", "out[1]/in[2]/m", "out[0]/n"]
    shown = [(view.id, step_name(view.id)) for view in nested([node(path) for path in paths])]
    assert [
        ("out", "out"),
        ("out[0]/in", "  [0] in"),
        ("out[0]/in[0]/m", "    [0] m"),
        ("out[0]/n", "  [0] n"),
        ("out[1]/in", "  [1] in"),
        ("out[1]/in[2]/m", "    [2] m"),
        ("z", "z"),
    ] == shown


def test_a_table_shows_paths_and_what_did_not_complete() -> None:
    """Brackets are no markup; skipped steps are grey."""
    run = RunView(
        run_id="r",
        status="completed",
        workflow="w",
        version=1,
        inputs={},
        nodes=(node("guard"), node("guard[body]/m"), node("z", "skipped")),
        started_at=0.0,
        updated_at=2.0,
        duration_ms=2000.0,
    )
    console = Console(width=120, force_terminal=True, color_system="standard")
    with console.capture() as capture:
        console.print(run_table(run))
    text = capture.get()
    assert "[body] m" in text
    assert "500.0" in text
    [grey] = [line for line in text.splitlines() if "skipped" in line]
    assert "\x1b[90m" in grey


@pytest.mark.parametrize(
    ("kind", "data", "wanted"),
    [
        ("NodeScheduled", {"node_id": "each[3]/ocr", "attempt": 2}, "each[3]/ocr  attempt 2"),
        ("ScopeOpened", {"scope": "each[3]", "inputs": {"x": 1}}, "each[3]"),
        ("SignalReceived", {"name": "ok", "signal_id": "s", "payload": 1}, "SignalReceived  ok"),
        ("RunPaused", {"reason": "look"}, 'reason="look"'),
        ("CleanupStarted", {"scope": "", "ending": "cancelled", "steps": ["a[compensate]"]}, "["),
        ("NodeOpened", {"node_id": "d", "plan": {"nodes": []}}, "NodeOpened      d"),
    ],
)
def test_every_kind_of_event_is_a_line(kind: str, data: dict[str, Any], wanted: str) -> None:
    """When, what, of which node or scope, and its facts."""
    event = EventView(id=7, sequence=1, commit=1, type=kind, at=1.25, data=data)
    line = event_line(event, 1.0)
    assert line.startswith("   7      250.0 ms  ")
    assert " ".join(wanted.split()) in " ".join(line.split())
    assert "plan" not in line


def test_a_rejected_run_has_no_version_and_no_steps(capsys: pytest.CaptureFixture[str]) -> None:
    """No empty table, and the reason is said."""
    run = Run(
        run_id="r",
        status="rejected",
        workflow="hello",
        version=0,
        inputs={},
        error=Fault(code="INVALID_ARGUMENT", message="the body is not JSON"),
        events=1,
        started_at=1.0,
        updated_at=1.0,
        duration_ms=0.0,
    )
    show_run(Screen(), run)
    assert "run r\nhello: rejected\nbecause: the body is not JSON\n" == capsys.readouterr().out


def test_one_is_singular() -> None:
    """1 node, 2 nodes."""
    assert ["0 nodes", "1 node", "2 nodes"] == [counted(number, "node") for number in range(3)]
