"""The commands that steer a run under way."""

from collections.abc import Callable
from typing import Annotated

import typer

from clawdbot.cli.options import Json, Url, guarded, json_value, named_values
from clawdbot.cli.output import Screen
from clawdbot.client import Client


RunId = Annotated[str, typer.Argument(metavar="RUN", help="Id of a run.")]
Node = Annotated[
    str, typer.Argument(metavar="NODE", help="Path of a node, as `show` prints it: each[3]/ocr.")
]
Reason = Annotated[str, typer.Option(help="Goes into the log.")]


def cancel(run_id: RunId, reason: Reason = "", as_json: Json = False, url: Url = None) -> None:
    """Call a run off; what it did is undone first where its nodes say how."""
    _steer(as_json, url, run_id, "cancel", lambda client: client.cancel(run_id, reason))


def pause(run_id: RunId, reason: Reason = "", as_json: Json = False, url: Url = None) -> None:
    """Begin nothing new in a run until it is resumed."""
    _steer(as_json, url, run_id, "pause", lambda client: client.pause(run_id, reason))


def resume(run_id: RunId, as_json: Json = False, url: Url = None) -> None:
    """Let a paused run go on."""
    _steer(as_json, url, run_id, "resume", lambda client: client.resume(run_id))


def signal(
    run_id: RunId,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Which signal.")],
    payload: Annotated[
        str | None, typer.Option("--payload", "-p", help="Its payload, JSON; else it has none.")
    ] = None,
    key: Annotated[
        str | None, typer.Option("--id", help="The same id again is the same signal.")
    ] = None,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Send a run a signal: to the node that waits for it, or for the one that will.

    Example: clawdbot signal 01J... approved --payload '{"by": "eve"}'
    """

    def action(client: Client) -> None:
        value = None if payload is None else json_value(payload, "--payload")
        client.signal(run_id, name, value, id=key)

    _steer(as_json, url, run_id, "signal", action)


def skip(
    run_id: RunId,
    node: Node,
    outputs: Annotated[
        list[str] | None,
        typer.Option(
            "--output",
            "-o",
            metavar="NAME=TEXT",
            help="What the node is taken to have given; NAME:=JSON for JSON.",
        ),
    ] = None,
    reason: Reason = "",
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Do without a node, or put outputs in place of its work.

    Example: clawdbot skip 01J... ocr --output text="by hand"
    """

    def action(client: Client) -> None:
        given = None if outputs is None else named_values(outputs, "--output")
        client.skip(run_id, node, outputs=given, reason=reason)

    _steer(as_json, url, run_id, "skip", action)


def retry(run_id: RunId, node: Node, as_json: Json = False, url: Url = None) -> None:
    """Try a node again that failed, or that waits for its next attempt."""
    _steer(as_json, url, run_id, "retry", lambda client: client.retry(run_id, node))


def _steer(
    as_json: bool, url: str | None, run_id: str, action: str, do: Callable[[Client], None]
) -> None:
    """Ask for it and say that it was asked for; the run's events tell what came of it."""
    screen = Screen(as_json)

    def ask(client: Client) -> None:
        do(client)
        if screen.as_json:
            screen.json({"run_id": run_id, "action": action})
        else:
            screen.print(f"{action}: run {run_id} was told")

    guarded(screen, url, ask)
