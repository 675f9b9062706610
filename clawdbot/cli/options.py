"""What every command that talks to a gateway shares."""

from collections.abc import Callable
from typing import Annotated

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
