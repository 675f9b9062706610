"""What the answers of a server mean that speaks OpenAI's protocol, and its refusals.

Source: the OpenAI API, `POST /chat/completions` and `POST /embeddings`.
"""

import math
import struct
from collections.abc import Mapping
from typing import Any

import orjson

from schemas.errors import (
    ClawdbotError,
    EngineFailed,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)
from schemas.values import Tensor, Value


EXCERPT_CHARS = 200
RETRY_AFTER_S_MAX = 300.0
_BUSY = {408, 409, 425, 500, 502, 503, 504}
"""Statuses after which the same request may succeed; 429 too."""


def said(document: Any) -> dict[str, Value]:
    """Return what a chat's answer says.

    Raises:
        EngineFailed: It is no such answer.
    """
    try:
        choice = document["choices"][0]
        message = choice["message"]
        text = message.get("content")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise EngineFailed("the server's answer has no message") from error
    if text is not None and not isinstance(text, str):
        raise EngineFailed("the server's message is no text")
    return {
        "text": text or "",
        "finish_reason": choice.get("finish_reason"),
        "usage": document.get("usage"),
        "message": message,
    }


def vectors(document: Any, count: int) -> dict[str, Value]:
    """Return the embeddings of an answer.

    Raises:
        EngineFailed: They are not as many as were asked for, or no vectors of one length.
    """
    try:
        items = sorted(document["data"], key=lambda item: item["index"])
        rows = [list(map(float, item["embedding"])) for item in items]
    except (KeyError, TypeError, ValueError) as error:
        raise EngineFailed("the server's answer has no embeddings") from error
    widths = {len(row) for row in rows}
    if len(rows) != count or len(widths) != 1 or 0 in widths:
        raise EngineFailed("the server did not give one vector for each text")
    flat = [number for row in rows for number in row]
    if not all(map(math.isfinite, flat)):
        raise EngineFailed("the server's vectors hold what is no number")
    (width,) = widths
    data = struct.pack(f"<{len(flat)}f", *flat)
    tensor = Tensor(datatype="FP32", shape=(count, width), data=data)
    return {"embedding": tensor, "usage": document.get("usage")}


def refusal(status: int, headers: Mapping[str, str], body: bytes) -> ClawdbotError:
    """Return the error that a status means: whose fault it is, and whether it may pass."""
    text = f"the server says {status}: {_complaint(body)}".rstrip(": ")
    if status in {401, 403}:
        return FailedPrecondition(
            f"the server refuses the key ({status}); whoever runs the workers sets it with "
            "CLAWDBOT_OPENAI_KEYS"
        )
    if status == 429:  # noqa: PLR2004 - too many requests
        return ResourceExhausted(text, retry_after_s=_retry_after(headers))
    if status in _BUSY:
        return Unavailable(text, retry_after_s=_retry_after(headers))
    if status in {400, 413, 422}:
        return InvalidArgument(text, field="inputs")
    return FailedPrecondition(text)


def _complaint(body: bytes) -> str:
    """Return what a server says of an error, cut short."""
    try:
        document = orjson.loads(body)
        error = document.get("error", document)
        said = error.get("message", "") if isinstance(error, dict) else error
    except (orjson.JSONDecodeError, AttributeError):
        said = body[: 4 * EXCERPT_CHARS].decode(errors="replace")
    return " ".join(str(said).split())[:EXCERPT_CHARS]


def _retry_after(headers: Mapping[str, str]) -> float:
    """Return the seconds after which a server wants to be asked again."""
    try:
        seconds = float(headers.get("retry-after", "1"))
    except ValueError:
        return 1.0  # a date: soon enough
    return min(max(seconds, 0.0), RETRY_AFTER_S_MAX) if math.isfinite(seconds) else 1.0


def failure(error: Any) -> ClawdbotError:
    """Return the error that a server tells in the middle of an answer: with a status, or none.

    Source: vLLM and llama.cpp put the HTTP status that they could not send any more in `code`.
    """
    body = orjson.dumps({"error": error})
    code = error.get("code") if isinstance(error, dict) else None
    if type(code) is int and 400 <= code < 600:  # noqa: PLR2004 - statuses of errors
        return refusal(code, {}, body)
    text = f"the server failed in the middle of its answer: {_complaint(body)}"
    return Unavailable(text.rstrip(": "))
