"""What pydantic found wrong, in words that say what to do."""

from collections.abc import Mapping
from typing import Any, Protocol

from schemas.ids import MODEL_NAME, MODEL_NAME_RULE, TOKEN, TOKEN_RULE


_PATTERNS = {TOKEN: TOKEN_RULE, MODEL_NAME: MODEL_NAME_RULE}


class Refusal(Protocol):
    """pydantic's `ValidationError`, or FastAPI's."""

    def errors(self) -> Any:
        """Return the complaints, each with `loc`, `msg`, `type` and perhaps `ctx`."""


def first_complaint(error: Refusal) -> tuple[list[str | int], str]:
    """Return where the first complaint points, from the outside in, and what to do about it."""
    first: Mapping[str, Any] = error.errors()[0]
    message = str(first["msg"]).removeprefix("Value error, ")
    pattern = first.get("ctx", {}).get("pattern")
    return list(first["loc"]), _PATTERNS.get(pattern, message)
