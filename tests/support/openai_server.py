"""A little server that speaks OpenAI's protocol over real sockets, as vLLM and Ollama do."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from typing_extensions import override


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
    content = body["messages"][-1]["content"]
    text = content if isinstance(content, str) else content[0]["text"]
    message = {"role": "assistant", "content": text.upper()}
    usage = {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"id": "chat-1", "object": "chat.completion", "choices": [choice], "usage": usage}


def _handler(server: OpenaiServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            headers = {name.lower(): value for name, value in self.headers.items()}
            server.seen.append({"path": self.path, "headers": headers, "body": body})
            status, text = server.status, server.answer
            if server.key and headers.get("authorization") != f"Bearer {server.key}":
                status, text = 401, json.dumps({"error": {"message": "Incorrect API key"}})
            answer = (text or json.dumps(_reply(self.path, body))).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(answer)))
            for name, value in server.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer)

        @override
        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    return Handler


@contextmanager
def serving() -> Iterator[OpenaiServer]:
    """Run a server."""
    server = OpenaiServer()
    http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(server))
    server.port = http.server_address[1]
    thread = threading.Thread(target=http.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
