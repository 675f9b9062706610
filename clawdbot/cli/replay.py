"""`clawdbot replay`: a run folded from its log or from a file, at once or step by step."""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from clawdbot.cli.options import Json, Url, guarded
from clawdbot.cli.output import Screen, event_line
from clawdbot.cli.runs import show_run
from clawdbot.client import Client
from clawdbot.recordings import open_recording, records_of
from clawdbot.stepping import Breakpoint, Stepper
from events.recording import Recording
from events.tape import Recorded, event_view
from schemas.errors import ClawdbotError, InvalidArgument, NotFound


HELP = (
    "next [N], continue, back [N], break node=PATH|event=TYPE, "
    "print [NODE|inputs|outputs|event|breaks], quit"
)
RunOrFile = Annotated[
    str, typer.Argument(metavar="RUN|FILE", help="Id of a run, or a file that `export` wrote.")
]


def replay(
    run: RunOrFile,
    until: Annotated[
        int | None, typer.Option(min=1, help="The state as it was after this event.")
    ] = None,
    breaks: Annotated[
        list[str] | None,
        typer.Option(
            "--break",
            metavar="node=PATH|event=TYPE",
            help="Stop after the first such event; with --step, after each.",
        ),
    ] = None,
    step: Annotated[
        bool, typer.Option("--step", help="Walk through it: commands are read from stdin.")
    ] = False,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Fold a run's log, or a file of it, again and show it step by step; no model is called.

    A file needs no mesh. Commands of --step: next [N], continue, back [N], break node=PATH or
    event=TYPE, print [NODE, inputs, outputs, event, breaks], quit.
    """
    screen = Screen(as_json)

    def action(client: Client) -> None:
        recording = recording_of(client, run, blobs=False)
        stepper = Stepper(
            recording.key,
            _bounded(records_of(recording), until),
            [Breakpoint.of(text) for text in breaks or ()],
        )
        if step:
            Session(screen, stepper).run(_lines())
            return
        happened = stepper.resume()
        if not screen.as_json:
            for record in happened:
                _show_event(screen, stepper, record)
        show_run(screen, stepper.view())

    guarded(screen, url, action)


def recording_of(client: Client, run: str, *, blobs: bool) -> Recording:
    """Return a run out of a file, or out of the mesh."""
    if Path(run).is_file():
        return open_recording(Path(run))
    return open_recording(client.export(run, blobs=blobs))


class Session:
    """A walk through a run by commands."""

    def __init__(self, screen: Screen, stepper: Stepper) -> None:
        self._screen = screen
        self._stepper = stepper
        self._commands: dict[str, Callable[[str], None]] = {
            "next": self._next,
            "continue": self._continue,
            "back": self._back,
            "break": self._break,
            "print": self._print,
            "help": self._help,
        }

    def run(self, lines: Iterator[str]) -> None:
        """Obey commands until `quit` or the end of input; an empty line repeats the last one."""
        screen, stepper = self._screen, self._stepper
        screen.note(f"run {stepper.key.run_id}: {len(stepper.records)} events; {HELP}")
        before = "next"
        while True:
            if sys.stdin.isatty():
                screen.results.print(f"({stepper.position}/{len(stepper.records)}) ", end="")
            line = next(lines, "quit").strip() or before
            word, _, rest = line.partition(" ")
            if word and "quit".startswith(word):
                return
            before = line
            try:
                self._command(word)(rest.strip())
            except ClawdbotError as error:
                screen.error(error)

    def _command(self, word: str) -> Callable[[str], None]:
        short = {"n": "next", "c": "continue", "b": "break", "p": "print", "h": "help"}
        name = short.get(word, word)
        try:
            return self._commands[name]
        except KeyError:
            raise InvalidArgument(f"no command '{word}'; there are: {HELP}") from None

    def _next(self, text: str) -> None:
        self._happened(self._stepper.step(_count(text)))

    def _continue(self, _: str) -> None:
        self._happened(self._stepper.resume())

    def _back(self, text: str) -> None:
        self._stepper.back(_count(text))
        last = self._stepper.last
        if last is not None:
            _show_event(self._screen, self._stepper, last)

    def _break(self, text: str) -> None:
        point = Breakpoint.of(text)
        self._stepper.breakpoints.append(point)
        self._screen.note(f"stops at {point}")

    def _print(self, what: str) -> None:
        screen, stepper = self._screen, self._stepper
        if what == "breaks":
            screen.json([str(point) for point in stepper.breakpoints])
            return
        view = stepper.view()
        match what:
            case "":
                show_run(screen, view)
            case "inputs":
                screen.json(view.inputs)
            case "outputs":
                screen.json(view.outputs)
            case "event":
                assert stepper.last is not None
                screen.json(event_view(stepper.last))
            case path:
                node = next((node for node in view.nodes if node.id == path), None)
                if node is None:
                    known = ", ".join(node.id for node in view.nodes)
                    raise NotFound(f"no node '{path}'; there are: {known}")
                screen.json(node)

    def _help(self, _: str) -> None:
        self._screen.print(HELP)

    def _happened(self, records: Sequence[Recorded]) -> None:
        for record in records:
            _show_event(self._screen, self._stepper, record)
        if not records:
            self._screen.note("nothing follows")


def _bounded(records: list[Recorded], until: int | None) -> list[Recorded]:
    if until is not None and until > len(records):
        raise InvalidArgument(f"the run has {len(records)} events", field="--until")
    return records[:until]


def _show_event(screen: Screen, stepper: Stepper, record: Recorded) -> None:
    view = event_view(record)
    if screen.as_json:
        screen.json(view)
    else:
        screen.line(event_line(view, stepper.records[0].event.at))


def _count(text: str) -> int:
    if not text:
        return 1
    if not text.isdecimal() or len(text) > 9:  # noqa: PLR2004 - far beyond any log
        raise InvalidArgument(f"'{text}' is no number of events")
    return int(text)


def _lines() -> Iterator[str]:
    yield from sys.stdin
