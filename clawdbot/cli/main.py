"""The commands."""

import json
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from clawdbot import doctor as examination
from clawdbot.cli import controls, conversions, local, models, replay, runs, streams, travel
from clawdbot.cli.options import Json, Url, guarded
from clawdbot.cli.output import ExitCode, Screen, counted, fail
from clawdbot.client import Client
from schemas.errors import ClawdbotError, InvalidArgument, NotFound
from schemas.workflow import Deployment, invalid


app = typer.Typer(
    name="clawdbot",
    help="Run workflows of models: durable, recorded, replayable.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=(
        "Exit status: 0 all went well, 1 the run failed or differs, 2 something you passed is "
        "wrong, 3 the mesh cannot be reached, 4 not found, 5 it took too long, 130 interrupted."
    ),
)


def deploy(
    source: Annotated[Path, typer.Argument(help="A workflow as JSON, or a folder of them.")],
    name: Annotated[str, typer.Option(help="Its name; the file's by default.")] = "",
    replicas: Annotated[
        int | None, typer.Option(help="Desired workers for each pool it uses; the file's, or 1.")
    ] = None,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Deploy a workflow, or every one in a folder.

    The file holds `{"nodes": [...], "edges": [...]}`, or that under "definition" beside "name" and
    "replicas". Deploying the same again changes nothing.
    """
    screen = Screen(as_json)

    def action(client: Client) -> None:
        files = sorted(source.glob("*.json")) if source.is_dir() else [source]
        if not files:
            raise NotFound(f"no *.json in {source}")
        for file in files:
            view = client.deploy(_deployment(file, name, replicas))
            if screen.as_json:
                screen.json(view)
                continue
            nodes = counted(len(view.definition.nodes), "node")
            screen.print(f"{view.name} version {view.version}, {nodes}")
            for place, item in view.adapted.items():
                screen.print(f"{place}: a file or text is made into a tensor by {item.adapter}")
            for warning in view.warnings:
                screen.note(f"warning: {warning}")

    guarded(screen, url, action)


def doctor(
    data_dir: Annotated[
        Path | None, typer.Option(help="That of `clawdbot up`; .clawdbot by default.")
    ] = None,
    accept_history: Annotated[
        bool,
        typer.Option(
            "--accept-history",
            help="First accept the event log as it stands, although it lacks what was seen of it.",
        ),
    ] = False,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Look for what could go wrong: server, streams, history, disk, clock, ports, weights."""
    screen = Screen(as_json)
    try:
        findings = [examination.accept_history(data_dir)] if accept_history else []
        findings += examination.examine(url, data_dir)
    except ClawdbotError as error:
        raise fail(screen, error) from None
    for finding in findings:
        if screen.as_json:
            screen.json(finding.as_dict())
        else:
            colour = {"ok": "green", "warn": "yellow", "fail": "red"}[finding.level]
            screen.results.print(f"{finding.level:<5}", style=colour, end="")
            screen.print(f"{finding.subject}: {finding.text}")
    worst = any(finding.level == "fail" for finding in findings)
    raise typer.Exit(ExitCode.RUN_FAILED if worst else ExitCode.OK)


def _deployment(file: Path, name: str, replicas: int | None) -> Deployment:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidArgument(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise InvalidArgument(f"{file} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise InvalidArgument(f"{file} holds no JSON object")
    if "definition" not in document:
        document = {"definition": document}
    own = {"name": file.stem if file.stem != "workflow" else file.resolve().parent.name}
    asked = {"name": name or None, "replicas": replicas}
    asked = {key: value for key, value in asked.items() if value is not None}
    try:
        return Deployment.model_validate({**own, **document, **asked})
    except ValidationError as error:
        raise invalid(error) from error


for command in (
    local.demo,
    local.up,
    deploy,
    runs.run,
    runs.call,
    streams.stream,
    runs.runs,
    runs.show,
    runs.events,
    replay.replay,
    travel.export,
    travel.import_,
    travel.fork,
    travel.diff,
    travel.regress,
    controls.cancel,
    controls.pause,
    controls.resume,
    controls.signal,
    controls.skip,
    controls.retry,
    runs.stats,
    conversions.convert,
    conversions.quantize,
    doctor,
):
    app.command(command.__name__.rstrip("_"))(command)


app.add_typer(models.app, name="models")


def main() -> None:
    """Run the command line."""
    app()
