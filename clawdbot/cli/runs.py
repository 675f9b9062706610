"""The commands about runs."""

import contextlib
import time
from typing import Annotated, Any

import typer
from rich.live import Live
from rich.table import Table

from clawdbot.cli.options import Json, Url, guarded
from clawdbot.cli.output import (
    ExitCode,
    Screen,
    adapted_lines,
    brief,
    event_line,
    run_exit_code,
    run_table,
    when,
)
from clawdbot.cli.values import bytes_of, inputs_of, targets_of, write_bytes
from clawdbot.client import Client
from clawdbot.results import Run, value_of
from schemas.api import StatisticsView, WorkflowView
from schemas.errors import (
    ClawdbotError,
    DeadlineExceeded,
    EngineFailed,
    InvalidArgument,
    NotFound,
)
from schemas.values import Binary, BlobRef, Tensor


GLANCE_S = 0.5
"""A run that is over by then is shown at once; a longer one step by step."""
REFRESH_S = 0.2
LIMIT_MAX = 500
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
        targets = targets_of(save)
        if targets and not wait:
            raise InvalidArgument("without waiting there is nothing to save yet", field="--save")
        found = _run(screen, client, workflow, inputs_of(inputs, files), wait, key)
        show_run(screen, found)
        code = run_exit_code(found)
        if code == ExitCode.OK:
            for path, target in targets.items():
                target.write_bytes(bytes_of(client, found.output(path)))
                screen.note(f"wrote {target}")
        return ExitCode.OK if not wait else code

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
        found = client.run(workflow, inputs_of(inputs, files), wait_s=wait)
        code = failed(screen, found)
        if code == ExitCode.OK:
            print_outputs(screen, client, found)
        return code

    guarded(screen, url, action)


def failed(screen: Screen, found: Run) -> ExitCode:
    """Say why a run gave nothing, if so; return its exit status."""
    code = run_exit_code(found)
    if code != ExitCode.OK:
        screen.error(_failure(found))
    return code


def print_outputs(screen: Screen, client: Client, found: Run) -> None:
    """Print what a run gives: the one output as it is, several as JSON."""
    values = [value for outputs in (found.outputs or {}).values() for value in outputs.values()]
    if screen.as_json or len(values) != 1:
        screen.json(found.outputs)
        return
    value = value_of(values[0])
    if isinstance(value, str):
        screen.print(value)
    elif isinstance(value, Binary | BlobRef | Tensor):
        write_bytes(client.fetch(value))
    else:
        screen.json(value)


def runs(
    workflow: Annotated[str | None, typer.Option(help="Only of this workflow.")] = None,
    status: Annotated[str | None, typer.Option(help="Only with this status.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=LIMIT_MAX, help="How many, newest first.")] = 20,
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
        for column in ("run", "workflow", "status", "started"):
            table.add_column(column, no_wrap=column in {"run", "started"})
        table.add_column("ms", justify="right", no_wrap=True)
        for item in page.runs:
            facts = (item.run_id, item.workflow, item.status, when(item.started_at))
            table.add_row(*facts, f"{item.duration_ms:.0f}")
        screen.print(table)
        if page.next is not None:
            screen.note(f"there are more; --limit shows up to {LIMIT_MAX}")

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
            show_run(screen, client.get(name))
        except NotFound:
            try:
                _show_workflow(screen, client.workflow(name), client)
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
                screen.line(event_line(event, started_at))

    guarded(screen, url, action)


def stats(
    workflow: Annotated[
        str | None, typer.Argument(metavar="[WORKFLOW]", help="Only of this workflow.")
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Build index and statistics anew from the log and compare them first."
        ),
    ] = False,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Count what each node did over all runs in the log.

    Exit status 1: with --verify, what the gateway keeps is not what the log says.
    """
    screen = Screen(as_json)

    def action(client: Client) -> int:
        verdicts = client.verify_projections() if verify else ()
        for item in verdicts:
            if screen.as_json:
                screen.json(item)
            else:
                said = "the same to the bit" if item.same else "NOT what the log says"
                screen.print(
                    f"{item.name}: {said}, {item.events} events at {item.events_per_s:.0f}/s, "
                    f"{item.rebuilt[:16]}"
                )
        found = client.statistics(workflow)
        if screen.as_json:
            screen.json(found)
        else:
            screen.print(_statistics(found))
        return ExitCode.OK if all(item.same for item in verdicts) else ExitCode.RUN_FAILED

    guarded(screen, url, action)


def _statistics(found: StatisticsView) -> Table:
    table = Table(title="times are means, milliseconds", title_justify="left")
    for column in ("workflow", "node", "models"):
        table.add_column(column)
    counts = ("runs", "completed", "kept", "failed", "retried", "skipped")
    times = ("queue_ms", "load_ms", "compute_ms", "compute_ms_max")
    for column in (*counts, *(name.replace("_ms", "").replace("_", " ") for name in times)):
        table.add_column(column, justify="right")
    for node in found.nodes:
        models = ", ".join(model.model for model in node.models)
        numbers = [str(getattr(node, name)) for name in counts]
        numbers += [f"{getattr(node, name):.1f}" for name in times]
        table.add_row(node.workflow, node.node, models, *numbers)
    return table


def _run(
    screen: Screen,
    client: Client,
    workflow: str,
    inputs: dict[str, Any],
    wait: float,
    key: str | None,
) -> Run:
    """Start a run and wait for it; on a terminal its steps are shown as they go."""
    patience = min(wait, GLANCE_S) if screen.watched else wait
    with screen.progress(f"running {workflow}"):
        found = client.run(workflow, inputs, wait_s=patience, idempotency_key=key)
    if not screen.watched or not wait or found.over:
        return found
    until = time.monotonic() + wait - patience
    with Live(run_table(found), console=screen.notes, transient=True) as live:
        while time.monotonic() < until:
            time.sleep(REFRESH_S)
            with contextlib.suppress(NotFound):  # it has not begun, and another gateway was asked
                found = client.get(found.run_id)
            live.update(run_table(found))
            if found.over:
                break
    return found


def _failure(found: Run) -> ClawdbotError:
    """Return why a run gave nothing."""
    if found.error is not None:
        return EngineFailed(f"run {found.run_id}: {found.error.message}", field=found.error.field)
    return DeadlineExceeded(f"run {found.run_id} is still {found.status}; it goes on")


def show_run(screen: Screen, found: Run) -> None:
    """Print a run, its steps and its outputs."""
    if screen.as_json:
        screen.json(found)
        return
    screen.print(f"run {found.run_id}")
    if found.status == "rejected":  # before any version of the workflow took it up
        screen.print(f"{found.workflow}: rejected")
    else:
        screen.print(run_table(found))
        for line in adapted_lines(found):
            screen.print(line)
    if found.error is not None:
        word = "because" if found.status == "rejected" else "failed"
        screen.print(f"{word}: {found.error.message}")
    if found.outputs is not None:
        for node_id, outputs in found.outputs.items():
            for name, value in outputs.items():
                screen.print(f"{node_id}.{name}: {_text(value)}")


def _show_workflow(screen: Screen, view: WorkflowView, client: Client) -> None:
    if screen.as_json:
        screen.json(view)
        return
    running = ", ".join(f"{count} {name}" for name, count in _workers(view, client).items())
    screen.print(f"{view.name} version {view.version}, replicas {view.replicas}")
    screen.print(f"workers running: {running}")
    for item in view.inputs:
        need = "" if item.required else " (optional)"
        screen.print(f"input {item.name}: {item.kind or 'anything'}{need}")
    for node in view.definition.nodes:
        screen.print(f"node {node.id}: {node.type} {brief(node.params)}")
    for edge in view.definition.edges:
        screen.print(f"edge {edge.source} -> {edge.target}")
    for place, made in view.adapted.items():
        screen.print(
            f"{place}: a file or text is made into a tensor by {made.adapter} {brief(made.params)}"
        )
    for warning in view.warnings:
        screen.note(f"warning: {warning}")


def _workers(view: WorkflowView, client: Client) -> dict[str, int]:
    """Return how many workers run of each modality that a workflow uses."""
    models = client.models()
    used = {str(node.params.get("model", node.type)) for node in view.definition.nodes}
    workers: dict[str, set[str]] = {model.modality: set() for model in models if model.name in used}
    for model in models:
        if model.modality in workers:
            workers[model.modality] |= {offer.worker for offer in model.offers}
    return {modality: len(names) for modality, names in sorted(workers.items())}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else brief(value)
