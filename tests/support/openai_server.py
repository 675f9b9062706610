"""A little server that speaks OpenAI's protocol over real sockets, as vLLM and Ollama do."""

import contextlib
import json
import re
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from typing_extensions import override


USAGE = {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3}
DONE = b"data: [DONE]\n\n"


@dataclass
class OpenaiServer:
    """What it saw, and how it answers instead of well."""

    port: int = 0
    key: str = ""
    """The only key it takes; any when empty."""
    seen: list[dict[str, Any]] = field(default_factory=list)
    """Path, headers in lower case and body of each request."""
    status: int = 200
    answer: str = ""
    """Said instead of what is right; with the status, and these headers."""
    headers: dict[str, str] = field(default_factory=dict)
    pieces: list[bytes] | None = None
    """Sent instead of a right stream, each by itself."""
    hold_after: int | None = None
    """After so many pieces of a stream it waits for `go`."""
    cuts: int = 0
    """So many streams break off before their last piece, as of a server that dies."""
    go: threading.Event = field(default_factory=threading.Event)
    left: threading.Event = field(default_factory=threading.Event)
    """Set when a client went away while the server waited."""

    @property
    def url(self) -> str:
        """Up to the version, as clients want it."""
        return f"http://127.0.0.1:{self.port}/v1"


def _reply(path: str, body: Any) -> dict[str, Any]:
    """Return a right answer: the last message in capitals, or lengths as vectors."""
    if path == "/v1/embeddings":
        vectors = [
            {"object": "embedding", "index": index, "embedding": [float(len(text)), 1.0]}
            for index, text in enumerate(body["input"])
        ]
        usage = {"prompt_tokens": 3, "total_tokens": 3}
        return {"object": "list", "data": vectors[::-1], "model": body["model"], "usage": usage}
    message = {"role": "assistant", "content": _said(body)}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"id": "chat-1", "object": "chat.completion", "choices": [choice], "usage": USAGE}


def _said(body: Any) -> str:
    content = body["messages"][-1]["content"]
    text: str = content if isinstance(content, str) else content[0]["text"]
    return text.upper()


def event(delta: Any = None, **more: Any) -> bytes:
    """Return a part of a stream: what it adds to the message, or something else."""
    part: dict[str, Any] = {"id": "chat-1", "object": "chat.completion.chunk", "choices": []}
    if delta is not None:
        finish_reason = more.pop("finish_reason", None)
        part["choices"] = [{"index": 0, "delta": delta, "finish_reason": finish_reason}]
    return b"data: %s\n\n" % json.dumps({**part, **more}).encode()


def stream_of(text: str, usage: bool = True) -> list[bytes]:
    """Return a right stream, a word at a time, as vLLM sends it."""
    words = [event({"content": word}) for word in re.findall(r"\s*\S+", text)]
    counted = [event(usage=USAGE)] if usage else []
    first, last = event({"role": "assistant", "content": ""}), event({}, finish_reason="stop")
    return [first, *words, last, *counted, DONE]


class _Handler(BaseHTTPRequestHandler):
    played: OpenaiServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.played.seen.append({"path": self.path, "headers": headers, "body": body})
        status, text = self.played.status, self.played.answer
        if self.played.key and headers.get("authorization") != f"Bearer {self.played.key}":
            status, text = 401, json.dumps({"error": {"message": "Incorrect API key"}})
        if body.get("stream") and status == 200 and not text:
            self._stream(body)
            return
        answer = (text or json.dumps(_reply(self.path, body))).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(answer)))
        for name, value in self.played.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer)

    def _stream(self, body: Any) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        usage = body.get("stream_options", {}).get("include_usage", False)
        pieces = stream_of(_said(body), usage) if self.played.pieces is None else self.played.pieces
        is_cut, self.played.cuts = self.played.cuts > 0, max(0, self.played.cuts - 1)
        with contextlib.suppress(ConnectionError):
            for number, piece in enumerate(pieces[:-1] if is_cut else pieces):
                if number == self.played.hold_after and not self._held():
                    return
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            if not is_cut:
                self.wfile.write(b"0\r\n\r\n")
        self.close_connection = True

    def _held(self) -> bool:
        """Wait for `go`; tell whether the client waited too."""
        self.close_connection = True
        while not self.played.go.is_set():
            if select.select([self.connection], [], [], 0.01)[0]:
                with contextlib.suppress(ConnectionError):
                    if self.connection.recv(1, socket.MSG_PEEK):
                        continue
                self.played.left.set()
                return False
        return True

    @override
    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def serving() -> Iterator[OpenaiServer]:
    """Run a server."""
    server = OpenaiServer()
    handler = type("Handler", (_Handler,), {"played": server})
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.port = http.server_address[1]
    thread = threading.Thread(target=http.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
