"""The commands of time travel: runs as files, and forks of runs."""

from pathlib import Path
from typing import Annotated

import typer

from clawdbot.cli.comparisons import show_comparison, show_regression
from clawdbot.cli.options import Json, Url, changes_of, guarded
from clawdbot.cli.output import ExitCode, Screen, counted, run_exit_code
from clawdbot.cli.runs import RunId, show_run
from clawdbot.cli.values import write_bytes
from clawdbot.client import Client
from clawdbot.recordings import Source, open_recording
from clawdbot.regression import PARALLEL_MAX, RUNS_MAX
from events.recording import Recording


Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="NODE.model=NAME, NODE.PARAM=VALUE or inputs.NAME=VALUE; JSON where it is JSON, else "
        "text. PATH:=JSON insists on JSON.",
    ),
]
Version = Annotated[
    int | None, typer.Option(min=1, help="Version of the workflow; the run's own by default.")
]
Tolerance = Annotated[
    float,
    typer.Option(min=0, help="Numbers that are no further apart than this count as equal."),
]


def export(
    run_id: RunId,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The file; RUN.clawdbot by default, - pipes.")
    ] = None,
    blobs: Annotated[
        bool, typer.Option("--blobs/--no-blobs", help="Whether cited blobs go with it.")
    ] = True,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Write a run into one file, in clear: its events, its workflow, its blobs.

    `clawdbot replay FILE` needs nothing else; `clawdbot import FILE` takes it into another mesh.
    """
    screen = Screen(as_json)

    def action(client: Client) -> None:
        packed = client.export(run_id, blobs=blobs)
        if str(out) == "-":
            write_bytes(packed)
            return
        target = out or Path(f"{run_id}.clawdbot")
        target.write_bytes(packed)
        found = open_recording(packed)
        if screen.as_json:
            screen.json({"file": str(target), "bytes": len(packed), **_facts(found)})
        else:
            facts = _facts(found)
            screen.print(
                f"wrote {target}: {counted(facts['events'], 'event')}, "
                f"{counted(facts['blobs'], 'blob')}, "
                f"{len(packed)} bytes, in clear"
            )
            if found.missing:
                screen.note(f"without {len(found.missing)} of the blobs the run cites")

    guarded(screen, url, action)


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `export` wrote.")],
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Take a run that is over out of a file into this mesh; the same again changes nothing."""
    screen = Screen(as_json)

    def action(client: Client) -> None:
        found = client.import_bundle(file)
        if screen.as_json:
            screen.json(found)
        else:
            screen.print(
                f"run {found.run_id} is here: {counted(found.events, 'event')}, {found.status}"
            )

    guarded(screen, url, action)


def fork(  # noqa: PLR0913, PLR0917 - one option for each
    run_id: RunId,
    at: Annotated[
        int | None,
        typer.Option(min=1, help="The event after which it begins, as `events` numbers them."),
    ] = None,
    changes: Changes = None,
    version: Version = None,
    wait: Annotated[
        float, typer.Option(help="Seconds to wait for the end; 0 returns at once.")
    ] = 60,
    key: Annotated[str | None, typer.Option(help="Idempotency key.")] = None,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Start a run that begins like another one and goes on differently.

    Nodes that were over at that event and that no change concerns keep their outputs; the rest
    runs.

    Example: clawdbot fork 01J... --at 7 --set nlu.model=distilbert-base --set inputs.text="hello"
    """
    screen = Screen(as_json)

    def action(client: Client) -> int:
        found = client.fork(
            run_id,
            at=at,
            changes=changes_of(changes),
            version=version,
            wait_s=wait,
            idempotency_key=key,
        )
        show_run(screen, found)
        kept = sum(node.kept_from is not None for node in found.nodes)
        screen.note(f"kept from run {run_id}: {kept} of {counted(len(found.nodes), 'node')}")
        return run_exit_code(found) if wait else ExitCode.OK

    guarded(screen, url, action)


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A run, or a file that `export` wrote.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The other one.")],
    tolerance: Tolerance = 0.0,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Compare two runs: the first node that differs, then field by field; times side by side.

    Exit status 0: they are the same; 1: they differ.
    """
    screen = Screen(as_json)

    def action(client: Client) -> int:
        found = client.compare(_source(a), _source(b), tolerance=tolerance)
        if screen.as_json:
            screen.json(found)
        else:
            show_comparison(screen, found)
        return ExitCode.OK if found.same else ExitCode.RUN_FAILED

    guarded(screen, url, action)


def regress(  # noqa: PLR0913, PLR0917 - one option for each
    workflow: Annotated[str, typer.Argument(help="Name of a deployed workflow.")],
    changes: Changes = None,
    version: Version = None,
    last: Annotated[
        int, typer.Option(min=1, max=RUNS_MAX, help="Recorded runs, the newest.")
    ] = 100,
    parallel: Annotated[
        int, typer.Option(min=1, max=PARALLEL_MAX, help="Forks under way at the same time.")
    ] = 4,
    wait: Annotated[float, typer.Option(min=0.1, help="Seconds that each fork may take.")] = 60,
    tolerance: Tolerance = 0.0,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Fork a workflow's last completed runs with a change; say how often they agree, and how fast.

    Exit status 0: every run agrees; 1: one does not, failed, or could not be forked.

    Example: clawdbot regress voice_assistant --set nlu.model=distilbert-base --last 100
    """
    screen = Screen(as_json)

    def action(client: Client) -> int:
        with screen.progress(f"forking runs of {workflow}"):
            client.workflow(workflow)
            found = client.regress(
                workflow,
                changes_of(changes),
                version=version,
                last=last,
                parallel=parallel,
                wait_s=wait,
                tolerance=tolerance,
            )
        if screen.as_json:
            screen.json(found)
        else:
            show_regression(screen, found)
        return ExitCode.OK if found.agreed == found.runs else ExitCode.RUN_FAILED

    guarded(screen, url, action)


def _source(text: str) -> Source:
    path = Path(text)
    return path if path.is_file() else text


def _facts(recording: Recording) -> dict[str, int]:
    return {
        "commits": len(recording.commits),
        "events": sum(len(commit.events) for commit in recording.commits),
        "blobs": len(recording.blobs),
    }
