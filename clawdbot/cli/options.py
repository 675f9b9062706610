"""What every command that talks to a gateway shares."""

import json
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import typer

from clawdbot.cli.output import ExitCode, Screen, fail
from clawdbot.client import Client
from schemas.errors import ClawdbotError, InvalidArgument


Json = Annotated[bool, typer.Option("--json", help="Print JSON, one document a line.")]
Url = Annotated[
    str | None, typer.Option("--url", help="The gateway; CLAWDBOT_URL or this machine by default.")
]


def guarded(screen: Screen, url: str | None, action: Callable[[Client], int | None]) -> None:
    """Do something with a client; errors become one line and an exit status."""
    try:
        with Client(url) as client:
            code = action(client)
    except ClawdbotError as error:
        raise fail(screen, error) from None
    except BrokenPipeError:
        raise typer.Exit(ExitCode.OK) from None
    except KeyboardInterrupt:
        screen.note("interrupted; a run that has begun goes on")
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    except OSError as error:  # a file that cannot be written; the client has its own errors
        unwritten = InvalidArgument(f"cannot write {error.filename}: {error.strerror}")
        raise fail(screen, unwritten) from None
    raise typer.Exit(code or ExitCode.OK)


def named_values(items: Iterable[str], option: str) -> dict[str, Any]:
    """Read `NAME=TEXT` and `NAME:=JSON`.

    Raises:
        InvalidArgument: One is neither; names it.
    """
    found: dict[str, Any] = {}
    for item in items:
        name, equals, text = item.partition("=")
        if not equals:
            raise InvalidArgument(f"'{item}' is not NAME=TEXT or NAME:=JSON", field=option)
        if name.endswith(":"):
            found[name[:-1]] = json_value(text, name[:-1])
        else:
            found[name] = text
    return found


def changes_of(items: Iterable[str] | None) -> dict[str, Any]:
    """Read `--set PATH=VALUE`: JSON where the value is JSON, else text; `PATH:=JSON` insists.

    Raises:
        InvalidArgument: One is neither; names it.
    """
    found: dict[str, Any] = {}
    for item in items or ():
        path, equals, text = item.partition("=")
        if not equals or not path.strip(":"):
            raise InvalidArgument(f"'{item}' is not PATH=VALUE", field="--set")
        if path.endswith(":"):
            found[path[:-1]] = json_value(text, "--set")
            continue
        try:
            found[path] = json.loads(text)
        except ValueError:
            found[path] = text
    return found


def json_value(text: str, option: str) -> Any:
    """Read JSON.

    Raises:
        InvalidArgument: It is none; names the option.
    """
    try:
        return json.loads(text)
    except ValueError as error:
        raise InvalidArgument(f"'{text}' is not JSON: {error}", field=option) from error
