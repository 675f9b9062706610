"""How the command line speaks: JSON or text, progress on a terminal, telling exit codes."""

import enum
import json
import re
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TextIO

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from rich.text import Text

from events.paths import node_id_of, owner_of, scope_of
from schemas.api import EventView, NodeView, RunView
from schemas.errors import (
    AlreadyExists,
    ClawdbotError,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    RetryableError,
)


TEXT_CHARS_MAX = 160
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
DAY_S = 86_400
PIPE_COLUMNS = 240
"""Tables for other programs are as wide as they like."""
HIDDEN = {
    "plan",
    "digest",
    "inputs_digest",
    "deadline",
    "timings",
    "correlation_id",
    "worker",
    "route",
}
"""What the lines of events leave out; --json has it."""
STYLES = {"skipped": "bright_black", "pending": "bright_black", "failed": "red"}
"""How the steps of a run are shown that did not complete."""


class ExitCode(enum.IntEnum):
    """What the exit status says."""

    OK = 0
    RUN_FAILED = 1
    INVALID = 2
    UNAVAILABLE = 3
    NOT_FOUND = 4
    TIMEOUT = 5
    INTERRUPTED = 130


@dataclass(frozen=True)
class Screen:
    """Where results and notes go.

    Args:
        as_json: Results are JSON on stdout, one document a line.
    """

    as_json: bool = False

    @property
    def notes(self) -> Console:
        """For people: stderr, so that stdout stays clean."""
        return _console(sys.stderr)

    @property
    def results(self) -> Console:
        """For results in text."""
        return _console(sys.stdout)

    @property
    def watched(self) -> bool:
        """Whether somebody looks on who wants to see progress."""
        return not self.as_json and sys.stderr.isatty()

    def json(self, document: Any) -> None:
        """Print a result as one line of JSON."""
        if isinstance(document, BaseModel):
            document = document.model_dump(mode="json")
        sys.stdout.write(json.dumps(document, ensure_ascii=False) + "\n")
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """Tell people something that is no result."""
        if not self.as_json:
            self.notes.print(text, markup=False)

    def print(self, what: Any) -> None:
        """Print text or a table."""
        if isinstance(what, str):
            self.results.print(what, markup=False)
        else:
            self.results.print(what)

    def say(self, text: str) -> None:
        """Print a piece of text at once, with no line behind it; a terminal gets no commands."""
        sys.stdout.write(_CONTROL.sub("", text) if sys.stdout.isatty() else text)
        sys.stdout.flush()

    def line(self, text: str) -> None:
        """Print text on one line, cut where the terminal ends."""
        if sys.stdout.isatty():
            self.results.print(text, markup=False, no_wrap=True, overflow="ellipsis")
        else:
            self.print(text)

    def error(self, error: ClawdbotError) -> None:
        """Say what went wrong."""
        if self.as_json:
            fault = {"code": error.code, "message": error.message, "field": error.field}
            sys.stderr.write(json.dumps({"error": fault}) + "\n")
        else:
            where = f" ({error.field})" if error.field else ""
            self.notes.print(f"error: {error.message}{where}", markup=False, style="red")

    @contextmanager
    def progress(self, text: str) -> Generator[None, None, None]:
        """Show that something goes on, on a terminal only."""
        if not self.watched:
            yield
            return
        with self.notes.status(text):
            yield


def exit_code(error: ClawdbotError) -> ExitCode:
    """Return what an error means for the exit status."""
    match error:
        case NotFound():
            return ExitCode.NOT_FOUND
        case InvalidArgument() | FailedPrecondition() | AlreadyExists():
            return ExitCode.INVALID
        case DeadlineExceeded():
            return ExitCode.TIMEOUT
        case RetryableError():
            return ExitCode.UNAVAILABLE
        case _:
            return ExitCode.RUN_FAILED


def run_exit_code(run: RunView) -> ExitCode:
    """Return what a run's status means for the exit status."""
    match run.status:
        case "completed":
            return ExitCode.OK
        case "accepted" | "running" | "paused":
            return ExitCode.TIMEOUT
        case _:
            return ExitCode.RUN_FAILED


def fail(screen: Screen, error: ClawdbotError) -> typer.Exit:
    """Print an error and return the exit it means."""
    screen.error(error)
    return typer.Exit(exit_code(error))


def run_table(run: RunView) -> Table:
    """Return a run's steps and their milliseconds as a table, what is inside a node below it."""
    title = f"{run.workflow} version {run.version}: {run.status} (times in milliseconds)"
    table = Table(title=title, title_justify="left")
    for column in ("step", "model"):
        table.add_column(column, no_wrap=True)
    for column in ("at", "queue", "load", "compute", "total"):
        table.add_column(column, justify="right", no_wrap=True)
    for node in nested(run.nodes):
        table.add_row(*_row(node, run), style=STYLES.get(node.status))
    return table


def nested(nodes: Sequence[NodeView]) -> Iterator[NodeView]:
    """Yield nodes so that what is inside a control node comes right after it."""
    scopes: dict[str, list[NodeView]] = {}
    owned: dict[str, list[str]] = {}
    for node in nodes:
        scope = scope_of(node.id)
        if scope and scope not in scopes:
            owned.setdefault(owner_of(scope)[0], []).append(scope)
        scopes.setdefault(scope, []).append(node)

    def steps(scope: str) -> Iterator[NodeView]:
        for node in scopes.get(scope, ()):
            yield node
            for inside in owned.get(node.id, ()):
                yield from steps(inside)

    yield from steps("")


def adapted_lines(run: RunView) -> Iterator[str]:
    """Yield which inputs an adapter makes of the files and texts that come."""
    for node in run.nodes:
        for name, adapter in node.adapted.items():
            yield f"{node.id}.{name}: a file or text is made into a tensor by {adapter}"


def step_name(path: str) -> str:
    """Return a node's path as it stands below its control node: `  [3] ocr`."""
    scope = scope_of(path)
    if not scope:
        return path
    return f"{'  ' * path.count('/')}[{scope[:-1].rpartition('[')[2]}] {node_id_of(path)}"


def _row(node: NodeView, run: RunView) -> list[Text | str]:
    begun, ended, timings = node.scheduled_at, node.finished_at, node.timings
    step = step_name(node.id)
    if node.attempt > 1:
        step += f" (attempt {node.attempt})"
    times, worked_s = ["", "", ""], 0.0
    if timings is not None:
        parts = (timings.queue_ms, timings.load_ms, timings.compute_ms)
        times = [f"{part:.1f}" for part in parts]
        worked_s = sum(parts) / 1000
    at = "" if begun is None else _ms(begun - run.started_at)
    total: str = node.status if node.kept_from is None else "kept"
    if node.status == "completed" and begun is not None and ended is not None:
        total = _ms(max(ended - begun, worked_s))  # recorded in one go with the node before
    return [Text(step), node.model, at, *times, total]  # a step's brackets are no markup


def event_line(event: EventView, started_at: float) -> str:
    """Return one event as a line: its number, when, what, of which node, and what it says."""
    facts = {name: value for name, value in event.data.items() if name not in HIDDEN and value}
    words = [str(facts.pop("node_id", None) or facts.pop("scope", None) or facts.pop("name", ""))]
    if facts.pop("attempt", 1) > 1:
        words.append(f"attempt {event.data['attempt']}")
    if "model" in facts:
        words.append(f"by {facts.pop('model')}")
    if "error" in facts:
        error = facts.pop("error")
        words.append(f"{error['code']}: {error['message']}")
    if "retry_at" in facts:
        words.append(f"again at {_ms(facts.pop('retry_at') - started_at)} ms")
    values = {**facts.pop("inputs", {}), **facts.pop("outputs", {})}
    words += [f"{name}={brief(value)}" for name, value in {**facts, **values}.items()]
    text = "  ".join(word for word in words if word)
    return _cut(f"{event.id:>4}  {_ms(event.at - started_at):>9} ms  {event.type:<14}  {text}")


def when(at: float) -> str:
    """Return a time of the last day as hours, minutes, seconds, an older one as a date."""
    recent = time.time() - at < DAY_S  # noqa: TID251 - for a person's eyes
    return time.strftime("%H:%M:%S" if recent else "%Y-%m-%d", time.localtime(at))


def counted(number: int, word: str) -> str:
    """Return `1 event`, `2 events`."""
    return f"{number} {word}{'' if number == 1 else 's'}"


def brief(document: Any) -> str:
    """Return JSON on one short line; bytes are named, not shown."""
    text = json.dumps(_without_bytes(document), ensure_ascii=False)
    return _cut(text)


def _cut(text: str) -> str:
    return text if len(text) <= TEXT_CHARS_MAX else text[: TEXT_CHARS_MAX - 1] + "…"


def _console(file: TextIO) -> Console:
    """Return a console that breaks lines between words on a terminal, and nowhere else."""
    if file.isatty():
        return Console(file=file, highlight=False)
    return Console(file=file, highlight=False, soft_wrap=True, width=PIPE_COLUMNS)


def _without_bytes(document: Any) -> Any:
    match document:
        case {"$binary": {"media_type": media_type, "data": str(data)}}:
            return f"<{media_type}, {len(data) * 3 // 4} bytes>"
        case {"$tensor": {"datatype": datatype, "shape": shape}}:
            return f"<{datatype} {list(shape)}>"
        case {"$blob": {"media_type": media_type, "size_bytes": size}}:
            return f"<{media_type}, {size} bytes, stored>"
        case dict():
            return {key: _without_bytes(value) for key, value in document.items()}
        case list():
            return [_without_bytes(item) for item in document]
        case _:
            return document


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f}"
