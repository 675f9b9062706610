"""The commands that run a mesh on this machine: `up` and `demo`."""

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer

from clawdbot import demonstration
from clawdbot.cli.output import ExitCode, Screen, fail
from clawdbot.mesh import METRICS_FILE, MeshOptions, running
from clawdbot.settings import read
from schemas.errors import ClawdbotError


PORT_MAX = 65_535


def up(  # noqa: PLR0913, PLR0917 - one option for each thing a mesh may have
    data_dir: Annotated[
        Path | None, typer.Option(help="What must survive a restart; .clawdbot by default.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=PORT_MAX, help="Port; 0 takes a free one.")
    ] = None,
    nats_url: Annotated[
        str | None, typer.Option(help="An existing server or cluster instead of our own.")
    ] = None,
    nats_port: Annotated[
        int | None,
        typer.Option(min=0, max=PORT_MAX, help="Port of our own; 0 takes a free one."),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=0, max=PORT_MAX, help="Port of the first service's /metrics; 0 takes free ones."
        ),
    ] = None,
    workers_max: Annotated[
        int | None, typer.Option(min=1, help="Workers of a modality at most.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
) -> None:
    """Run the whole mesh on this machine until Ctrl-C: nats-server and every service.

    What ends is started again; what is stored survives. Logs are in DATA_DIR/logs.
    """
    screen = Screen(as_json)
    asked = {
        "data_dir": data_dir,
        "http_host": host,
        "http_port": port,
        "nats_url": nats_url,
        "nats_port": nats_port,
        "metrics_port": metrics_port,
        "workers_max": workers_max,
    }

    async def main() -> None:
        settings = read(**{name: value for name, value in asked.items() if value is not None})
        options = MeshOptions(**settings.model_dump(exclude={"url", "models_dir"}))
        async with running(options, _reporter(screen)) as mesh:
            if as_json:
                screen.json({"event": "up", "url": mesh.http_url, "nats_url": mesh.nats_url})
            else:
                screen.print(f"clawdbot is up at {mesh.http_url} (docs at {mesh.http_url}/docs)")
                screen.print(f"NATS at {mesh.nats_url}; logs in {options.data_dir / 'logs'}")
                screen.print(f"Prometheus finds every service in {options.data_dir / METRICS_FILE}")
                screen.print("Ctrl-C stops it; what is stored stays.")
            await asyncio.Event().wait()

    _until_told(screen, main, told=ExitCode.OK)


def demo(
    audio: Annotated[
        Path | None, typer.Option(help="A WAV file of your own; English, any length to 10 min.")
    ] = None,
    data_dir: Annotated[Path, typer.Option(help="Where the demo keeps its mesh.")] = Path(
        ".clawdbot/demo"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print the run as JSON.")] = False,
) -> None:
    """Start a mesh, ask the voice assistant something, show what happened, stop.

    Without --audio it hears a recording that comes with clawdbot.
    """
    screen = Screen(as_json)
    options = MeshOptions(data_dir=data_dir, http_port=0, nats_port=0)

    async def main() -> None:
        begun = time.monotonic()
        with screen.progress("starting the mesh"):
            stack = contextlib.AsyncExitStack()
            mesh = await stack.enter_async_context(running(options, lambda _name, _text: None))
        async with stack:
            screen.note(f"mesh up in {time.monotonic() - begun:.1f} s, at {mesh.http_url}")
            await demonstration.show(screen, mesh.http_url, audio, data_dir)
        screen.note(f"stopped; all in all {time.monotonic() - begun:.1f} s")

    _until_told(screen, main, told=ExitCode.INTERRUPTED)


def _reporter(screen: Screen) -> Callable[[str, str], None]:
    def report(name: str, text: str) -> None:
        if screen.as_json:
            screen.json({"event": "process", "name": name, "text": text})
        else:
            screen.note(f"{time.strftime('%H:%M:%S')} {name}: {text}")

    return report


def _until_told(
    screen: Screen, main: Callable[[], Coroutine[Any, Any, None]], *, told: ExitCode
) -> None:
    """Run until it ends, or until a signal; then let it clean up.

    Args:
        screen: For errors.
        main: What to run.
        told: The exit status after a signal.
    """

    async def supervised() -> ExitCode:
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(signum) is not signal.SIG_IGN:  # as nohup wants it
                loop.add_signal_handler(signum, task.cancel)
        try:
            await main()
        except asyncio.CancelledError:
            return told
        return ExitCode.OK

    try:
        code = asyncio.run(supervised())
    except ClawdbotError as error:
        raise fail(screen, error) from None
    raise typer.Exit(code)
