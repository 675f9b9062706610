"""A server that is no part of the mesh, for nodes that call outside."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from typing_extensions import override


@dataclass
class Outside:
    """A server that is no part of the mesh."""

    url: str = ""
    seen: list[dict[str, str]] = field(default_factory=list)
    """Path and headers of each request."""
    release: threading.Event = field(default_factory=threading.Event)
    gone: threading.Event = field(default_factory=threading.Event)
    """Set when a client left before its answer."""


def handler_of(outside: Outside) -> type[BaseHTTPRequestHandler]:  # noqa: C901 - a class
    """Return what answers: `/flaky` fails twice, `/slow` waits, anything else is mirrored."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            size = int(self.headers.get("content-length", "0"))
            body = self.rfile.read(size)
            outside.seen.append(
                {"path": self.path, **{k.lower(): v for k, v in self.headers.items()}}
            )
            status = 200
            if self.path == "/flaky" and self._count() < 3:
                status = 503
            if self.path == "/slow":
                self._wait()
            answer = json.dumps({"path": self.path, "body": body.decode(), "n": self._count()})
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer.encode())

        @override
        def log_message(self, *_: Any) -> None:
            """Say nothing."""

        def _count(self) -> int:
            return sum(seen["path"] == self.path for seen in outside.seen)

        def _wait(self) -> None:
            self.connection.setblocking(False)
            while not outside.release.wait(0.02):
                try:
                    if self.connection.recv(1) == b"":
                        outside.gone.set()
                        break
                except BlockingIOError:
                    continue
            self.connection.setblocking(True)

    return Handler


@contextmanager
def serving() -> Iterator[Outside]:
    """Serve until the block is left."""
    outside = Outside()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(outside))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    outside.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield outside
    finally:
        outside.release.set()
        server.shutdown()
        server.server_close()
        thread.join()
