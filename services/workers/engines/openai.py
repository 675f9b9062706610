"""Asks a server that speaks OpenAI's protocol: vLLM, Ollama, llama.cpp, or a public one.

The catalogue names the server and the model there. The key is the operator's: it stands in an
environment variable, is bound to a host by `CLAWDBOT_OPENAI_KEYS`, and goes nowhere else; redirects
are not followed.

Source: the OpenAI API, `POST /chat/completions` and `POST /embeddings`.
"""

import base64
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson
from typing_extensions import override

from schemas.catalogue import ModelSpec
from schemas.errors import (
    EngineFailed,
    FailedPrecondition,
    InvalidArgument,
    ModelUnavailable,
    PermissionDenied,
)
from schemas.values import Binary, Value
from services.workers.engine import AsyncEngine, Request
from services.workers.engines import addresses, fields
from services.workers.engines.calls import (
    RESPONSE_BYTES_MAX,
    SILENCE_S,
    Answer,
    Call,
    Caller,
    url_of,
)
from services.workers.engines.openai_answers import refusal, said, vectors
from services.workers.engines.openai_stream import GrowingChat
from services.workers.engines.sse import EventReader


REQUEST_BYTES_MAX = 16 * 1024 * 1024
EVENT_STREAM = "text/event-stream"

_NUMBERS = {
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "max_tokens": (1, 1_000_000),
    "seed": (-(2**63), 2**63 - 1),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
}
_WHOLE = {"max_tokens", "seed"}
_INPUTS = {"chat": {"text", "messages", "image"}, "embeddings": {"text"}}
_OUTPUTS = {
    "chat": {"text", "finish_reason", "usage", "message"},
    "embeddings": {"embedding", "usage"},
}


class OpenaiEngine(AsyncEngine):
    """Params of the catalogue entry: `url` (up to `/v1`), `model` there, `task`.

    `chat`: inputs `text`, or `messages` as the protocol has them, and `image`, a file the model
    looks at; outputs, those of them that are declared: `text`, `finish_reason`, `usage`, `message`.
    Params of a request: `system`, `temperature`, `top_p`, `max_tokens`, `seed`, `stop`,
    `presence_penalty`, `frequency_penalty`. Where the entry says `streams: true` the server is
    asked for a stream, and each text that it adds is a part of the answer.
    `embeddings`: input `text`, one or a list; outputs `embedding` FP32 [text, dimension], `usage`.
    """

    def __init__(self, spec: ModelSpec, models_dir: Path) -> None:
        super().__init__(spec, models_dir)
        params = spec.params
        self._allowed = parse_allowed(str(params.get("allow", "")))
        self._bytes_max = int(params.get("bytes_max", RESPONSE_BYTES_MAX))
        self._silence_s = float(params.get("silence_s", SILENCE_S))
        self._keys: Mapping[str, str] = params.get("keys", {})
        self._gives_text = any(port.name == "text" for port in spec.outputs)
        self._caller: Caller

    @override
    def missing(self) -> str | None:
        try:
            self._url()
            task = self._task()
        except ModelUnavailable as error:
            return error.message
        unknown = fields.unknown_port(self.spec, task, _INPUTS[task], _OUTPUTS[task])
        if unknown is not None:
            return unknown
        if self.spec.streams and task != "chat":
            return f"the task '{task}' gives no answers in parts: leave out 'streams'"
        return fields.missing_package("httpx")

    @override
    def load(self) -> None:
        absent = self.missing()
        if absent is not None:
            raise ModelUnavailable(absent)
        tls = ssl.create_default_context()
        self._caller = Caller(self._allowed, self._bytes_max, tls, silence_s=self._silence_s)

    @override
    async def answer(self, request: Request) -> Mapping[str, Value]:
        task = self._task()
        path, body = self._chat(request) if task == "chat" else self._embeddings(request)
        async with self._caller.asking(self._call(path, body, request.key)) as answer:
            if answer.status != 200:  # noqa: PLR2004 - the one that carries an answer
                raise refusal(answer.status, answer.headers, await answer.read())
            document = await self._document(answer, request)
        found = said(document) if task == "chat" else vectors(document, len(body["input"]))
        return {port.name: found[port.name] for port in self.spec.outputs}

    async def _document(self, answer: Answer, request: Request) -> Any:
        """Return what the server answers, as JSON; a stream is put together.

        Raises:
            EngineFailed: It is no answer.
            Unavailable: A stream ended too early, or with an error; retryable.
        """
        kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
        if self.spec.streams and kind == EVENT_STREAM:
            return await self._growing(answer, request)
        try:
            return orjson.loads(await answer.read())  # of a server that gives no streams, too
        except orjson.JSONDecodeError as error:
            raise EngineFailed("the server's answer is no JSON") from error

    async def _growing(self, answer: Answer, request: Request) -> Any:
        """Hand over each text that a stream adds; return the whole answer."""
        reader, growing = EventReader(), GrowingChat()
        emit = request.emit if self._gives_text else None
        async for chunk in answer.chunks:
            for data in reader.feed(chunk):
                text = growing.add(data)
                if text and emit is not None:
                    emit({"text": text})
            if growing.is_done:
                break
        return growing.whole()

    def _task(self) -> str:
        task = self.spec.params.get("task", "chat")
        if task not in _INPUTS:
            raise ModelUnavailable(f"'task' of the catalogue entry is one of {', '.join(_INPUTS)}")
        return str(task)

    def _url(self) -> Any:
        """Return the server's address.

        Raises:
            ModelUnavailable: The catalogue names none, or no model there.
        """
        if not isinstance(self.spec.params.get("model"), str):
            raise ModelUnavailable("'model' of the catalogue entry names the model at the server")
        try:
            return url_of(self.spec.params.get("url"))
        except (InvalidArgument, PermissionDenied) as error:
            raise ModelUnavailable(f"'url' of the catalogue entry: {error.message}") from error

    def _chat(self, request: Request) -> tuple[str, dict[str, Any]]:
        messages = _messages(request)
        system = request.params.get("system", "")
        if not isinstance(system, str):
            raise InvalidArgument("'system' must be text", field="params.system")
        if system:
            messages = [{"role": "system", "content": system}, *messages]
        body = {"model": self.spec.params["model"], "messages": messages, "stream": False}
        if self.spec.streams:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return "chat/completions", body | _options(request)

    def _embeddings(self, request: Request) -> tuple[str, dict[str, Any]]:
        texts = fields.texts(request)
        body = {"model": self.spec.params["model"], "input": texts, "encoding_format": "float"}
        return "embeddings", body

    def _call(self, path: str, body: Mapping[str, Any], key: str) -> Call:
        """Return a request as it goes out, with the key of its host.

        Raises:
            InvalidArgument: It is too large.
        """
        base = self._url()
        url = base.copy_with(path=f"{base.path.rstrip('/')}/{path}")
        content = orjson.dumps(body)
        if len(content) > REQUEST_BYTES_MAX:
            raise InvalidArgument(
                f"the request has {len(content)} bytes; at most {REQUEST_BYTES_MAX} are sent",
                field="inputs",
            )
        headers = {"User-Agent": "clawdbot", "Content-Type": "application/json"}
        headers["Accept"] = EVENT_STREAM if body.get("stream") else "application/json"
        secret = self._keys.get(origin(url)) or self._keys.get(url.host)
        if secret:
            headers["Authorization"] = f"Bearer {secret}"
        if key:
            headers["Idempotency-Key"] = key
        return Call("POST", url, headers, content)


def origin(url: Any) -> str:
    """Return host and port of an address, as `CLAWDBOT_OPENAI_KEYS` may name it."""
    port = url.port or (443 if url.scheme == "https" else 80)
    return f"{url.host}:{port}"


def parse_allowed(text: str) -> addresses.Allowed:
    """Read `CLAWDBOT_OPENAI_ALLOW`.

    Raises:
        FailedPrecondition: An item is neither a name nor a range.
    """
    return addresses.Allowed.parse(text, "CLAWDBOT_OPENAI_ALLOW")


def parse_keys(text: str, secret_of: Callable[[str], str | None]) -> dict[str, str]:
    """Read `HOST=VARIABLE` with commas between them, and the key in each variable.

    Args:
        text: `CLAWDBOT_OPENAI_KEYS`; a host may have a port.
        secret_of: Reads a variable.

    Raises:
        FailedPrecondition: Something else, or the variable is not set; never says a key.
    """
    found = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        host, equals, variable = item.partition("=")
        if not equals or not host.strip() or not variable.strip().isidentifier():
            raise FailedPrecondition(
                f"what is set for '{host}' is not HOST=VARIABLE, such as api.example.com=A_KEY",
                field="CLAWDBOT_OPENAI_KEYS",
            )
        secret = secret_of(variable.strip())
        if not secret:
            raise FailedPrecondition(
                f"the variable {variable.strip()} is not set", field="CLAWDBOT_OPENAI_KEYS"
            )
        if not secret.isascii() or not secret.isprintable():
            raise FailedPrecondition(
                f"the variable {variable.strip()} holds what no header can carry",
                field="CLAWDBOT_OPENAI_KEYS",
            )
        found[host.strip().lower()] = secret
    return found


def _messages(request: Request) -> list[Any]:
    """Return the messages of a chat.

    Raises:
        InvalidArgument: Neither a text nor messages; names the input.
    """
    given = request.inputs.get("messages")
    if given is not None:
        return fields.messages(given)
    text: Any = fields.text(request)
    image = request.inputs.get("image")
    if image is None:
        return [{"role": "user", "content": text}]
    if not isinstance(image, Binary) or not image.media_type.startswith("image/"):
        raise InvalidArgument("'image' must be an image file", field="inputs.image")
    data = base64.b64encode(image.data).decode()
    picture = {"url": f"data:{image.media_type};base64,{data}"}
    parts = [{"type": "text", "text": text}, {"type": "image_url", "image_url": picture}]
    return [{"role": "user", "content": parts}]


def _options(request: Request) -> dict[str, Any]:
    """Return how a text is wanted.

    Raises:
        InvalidArgument: A param is out of range; names it.
    """
    found: dict[str, Any] = {}
    for name, (low, high) in _NUMBERS.items():
        if name in request.params:
            number = fields.number(request, name, default=low, low=low, high=high)
            found[name] = int(number) if name in _WHOLE else number
    stop = request.params.get("stop")
    if stop is not None:
        stops = [stop] if isinstance(stop, str) else stop
        if not isinstance(stops, list) or not all(isinstance(item, str) for item in stops):
            raise InvalidArgument("'stop' must be a text or a list of texts", field="params.stop")
        found["stop"] = stops
    return found
