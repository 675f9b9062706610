"""The commands about runs."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from clawdbot.cli.options import Json, Url, guarded, named_values
from clawdbot.cli.output import ExitCode, Screen, brief, event_line, run_exit_code, run_table
from clawdbot.client import Client
from clawdbot.results import Run, value_of
from schemas.api import WorkflowView
from schemas.errors import InvalidArgument, NotFound
from schemas.values import Binary, BlobRef, Tensor, Value


Inputs = Annotated[
    list[str] | None,
    typer.Option("--input", "-i", metavar="NAME=TEXT", help="An input; NAME:=JSON for JSON."),
]
Files = Annotated[
    list[str] | None,
    typer.Option("--file", "-f", metavar="NAME=PATH", help="An input from a file."),
]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="Id of a run.")]


def run(  # noqa: PLR0913, PLR0917 - one option for each
    workflow: Annotated[str, typer.Argument(help="Name of a deployed workflow.")],
    inputs: Inputs = None,
    files: Files = None,
    wait: Annotated[
        float, typer.Option(help="Seconds to wait for the end; 0 returns at once.")
    ] = 60,
    key: Annotated[str | None, typer.Option(help="Idempotency key.")] = None,
    save: Annotated[
        list[str] | None,
        typer.Option("--save", metavar="NODE.OUTPUT=PATH", help="Write an output to a file."),
    ] = None,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Start a run and show its steps.

    Example: clawdbot run voice_assistant --file audio=hello.wav --save tts.audio=answer.wav
    """
    screen = Screen(as_json)

    def action(client: Client) -> int:
        with screen.progress(f"running {workflow}"):
            found = client.run(workflow, _inputs(inputs, files), wait_s=wait, idempotency_key=key)
        _show_run(screen, found)
        for item in save or ():
            path, _, target = item.partition("=")
            Path(target or path).write_bytes(_bytes(client, found.output(path)))
            screen.note(f"wrote {target or path}")
        return ExitCode.OK if not wait else run_exit_code(found)

    guarded(screen, url, action)


def call(
    workflow: Annotated[str, typer.Argument(help="Name of a deployed workflow.")],
    inputs: Inputs = None,
    files: Files = None,
    wait: Annotated[float, typer.Option(help="Seconds to wait.")] = 60,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Run a workflow and print nothing but what it gives.

    Text and JSON are printed, bytes are written as they are.

    Example: clawdbot call speak -i text=hi > hi.wav
    """
    screen = Screen(as_json)

    def action(client: Client) -> int:
        found = client.run(workflow, _inputs(inputs, files), wait_s=wait)
        code = run_exit_code(found)
        if code != ExitCode.OK:
            why = found.error.message if found.error else f"the run is {found.status}"
            screen.note(f"{found.run_id}: {why}")
            return code
        values = [value for outputs in (found.outputs or {}).values() for value in outputs.values()]
        if screen.as_json or len(values) != 1:
            screen.json(found.outputs)
            return code
        value = value_of(values[0])
        if isinstance(value, str):
            screen.print(value)
        elif isinstance(value, Binary | BlobRef | Tensor):
            sys.stdout.buffer.write(client.fetch(value))
        else:
            screen.json(value)
        return code

    guarded(screen, url, action)


def runs(
    workflow: Annotated[str | None, typer.Option(help="Only of this workflow.")] = None,
    status: Annotated[str | None, typer.Option(help="Only with this status.")] = None,
    limit: Annotated[int, typer.Option(help="How many, newest first.")] = 20,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """List runs, newest first."""
    screen = Screen(as_json)

    def action(client: Client) -> None:
        page = client.runs(workflow=workflow, status=status, limit=limit)
        if screen.as_json:
            for item in page.runs:
                screen.json(item)
            return
        table = Table()
        for column in ("run", "workflow", "status", "commits", "ms"):
            table.add_column(column, no_wrap=column == "run")
        for item in page.runs:
            facts = (item.run_id, item.workflow, item.status, item.commits, item.duration_ms)
            table.add_row(*(str(fact) for fact in facts))
        screen.print(table)

    guarded(screen, url, action)


def show(
    name: Annotated[str, typer.Argument(metavar="RUN|WORKFLOW", help="A run or a workflow.")],
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Show a run or a workflow."""
    screen = Screen(as_json)

    def action(client: Client) -> None:
        try:
            _show_run(screen, client.get(name))
        except NotFound:
            try:
                _show_workflow(screen, client.workflow(name))
            except NotFound:
                raise NotFound(f"there is neither a run nor a workflow '{name}'") from None

    guarded(screen, url, action)


def events(
    run_id: RunId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="To the run's end.")] = False,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """List a run's events; with --follow, as they happen."""
    screen = Screen(as_json)

    def action(client: Client) -> None:
        started_at: float | None = None
        for event in client.follow(run_id) if follow else client.events(run_id):
            started_at = event.at if started_at is None else started_at
            if screen.as_json:
                screen.json(event)
            else:
                screen.print(event_line(event, started_at))

    guarded(screen, url, action)


def replay(
    run_id: RunId,
    until: Annotated[int | None, typer.Option(help="The state as it was after this event.")] = None,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Fold a run's log again and show it step by step; no model is called."""
    screen = Screen(as_json)

    def action(client: Client) -> None:
        found = client.replay(run_id, until)
        if screen.as_json:
            screen.json(found)
            return
        for event in client.events(run_id)[:until]:
            screen.print(event_line(event, found.started_at))
        _show_run(screen, found)

    guarded(screen, url, action)


def _show_run(screen: Screen, found: Run) -> None:
    if screen.as_json:
        screen.json(found)
        return
    screen.print(f"run {found.run_id}")
    screen.print(run_table(found))
    if found.error is not None:
        screen.print(f"failed: {found.error.message}")
    if found.outputs is not None:
        for node_id, outputs in found.outputs.items():
            for name, value in outputs.items():
                screen.print(f"{node_id}.{name}: {_text(value)}")


def _show_workflow(screen: Screen, view: WorkflowView) -> None:
    if screen.as_json:
        screen.json(view)
        return
    screen.print(f"{view.name} version {view.version}, replicas {view.replicas}")
    for item in view.inputs:
        need = "" if item.required else " (optional)"
        screen.print(f"input {item.name}: {item.kind or 'anything'}{need}")
    for node in view.definition.nodes:
        screen.print(f"node {node.id}: {node.type} {brief(node.params)}")
    for edge in view.definition.edges:
        screen.print(f"edge {edge.source} -> {edge.target}")
    for warning in view.warnings:
        screen.note(f"warning: {warning}")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else brief(value)


def _inputs(texts: list[str] | None, files: list[str] | None) -> dict[str, Any]:
    found = named_values(texts or (), "--input")
    for item in files or ():
        name, equals, path = item.partition("=")
        if not equals:
            raise InvalidArgument(f"'{item}' is not NAME=PATH", field="--file")
        found[name] = Path(path)
    return found


def _bytes(client: Client, value: Value) -> bytes:
    if isinstance(value, Binary | BlobRef | Tensor):
        return client.fetch(value)
    return (value if isinstance(value, str) else json.dumps(value)).encode()
