"""Reads the inputs and parameters of a request, and refuses what does not fit."""

from collections.abc import Collection
from importlib.util import find_spec
from typing import Any

from schemas.catalogue import ModelSpec
from schemas.errors import InvalidArgument
from schemas.values import Binary, Tensor
from services.workers.engine import Request


TEXT_CHARS_MAX = 16 * 1024
MESSAGES_MAX = 1024


def text(request: Request, name: str = "text", *, chars_max: int = TEXT_CHARS_MAX) -> str:
    """Return a text input.

    Raises:
        InvalidArgument: Absent, no text, or too long; names `inputs.<name>`.
    """
    value = request.inputs.get(name)
    where = f"inputs.{name}"
    if not isinstance(value, str):
        raise InvalidArgument(f"'{name}' must be text", field=where)
    if len(value) > chars_max:
        raise InvalidArgument(
            f"'{name}' has {len(value)} characters; at most {chars_max} are allowed", field=where
        )
    return value


def texts(request: Request, name: str = "text", *, items_max: int = 1024) -> list[str]:
    """Return an input that is one text or a list of texts, as a list.

    Raises:
        InvalidArgument: Something else, or too many; names `inputs.<name>`.
    """
    value = request.inputs.get(name)
    found = [value] if isinstance(value, str) else value
    where = f"inputs.{name}"
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise InvalidArgument(f"'{name}' must be a text or a list of texts", field=where)
    if not 0 < len(found) <= items_max:
        raise InvalidArgument(f"'{name}' must hold 1 to {items_max} texts", field=where)
    if max(map(len, found)) > TEXT_CHARS_MAX:
        raise InvalidArgument(
            f"each text of '{name}' may have at most {TEXT_CHARS_MAX} characters", field=where
        )
    return found


def messages(given: object) -> list[dict[str, Any]]:
    """Return the messages of a chat.

    Raises:
        InvalidArgument: Something else, or too many; names `inputs.messages`.
    """
    found = list(given) if isinstance(given, list) else []
    fits = all(isinstance(item, dict) and isinstance(item.get("role"), str) for item in found)
    if not fits or not 0 < len(found) <= MESSAGES_MAX:
        raise InvalidArgument(
            f"'messages' must be a list of 1 to {MESSAGES_MAX} objects with a role and content",
            field="inputs.messages",
        )
    return found


def unknown_port(
    spec: ModelSpec, task: str, inputs: Collection[str], outputs: Collection[str]
) -> str | None:
    """Return why a model cannot be served: a port that its task does not have; None without one."""
    for side, ports, known in (("input", spec.inputs, inputs), ("output", spec.outputs, outputs)):
        for port in ports:
            if port.name not in known:
                names = ", ".join(sorted(known))
                return f"the task '{task}' has no {side} '{port.name}', only {names}"
    return None


def data(request: Request, name: str, *, bytes_max: int) -> bytes:
    """Return the bytes of an audio or image input.

    Raises:
        InvalidArgument: Absent, no bytes, empty or too many; names `inputs.<name>`.
    """
    value = request.inputs.get(name)
    content = value.data if isinstance(value, Binary) else value
    where = f"inputs.{name}"
    if not isinstance(content, bytes):
        raise InvalidArgument(f"'{name}' must be a file: bytes with a media type", field=where)
    if not content:
        raise InvalidArgument(f"'{name}' is empty", field=where)
    if len(content) > bytes_max:
        raise InvalidArgument(
            f"'{name}' has {len(content)} bytes; at most {bytes_max} are allowed", field=where
        )
    return content


def tensor(request: Request, name: str) -> Tensor:
    """Return a float32 [row, dimension] input with at least one row.

    Raises:
        InvalidArgument: Another shape or datatype; names `inputs.<name>`.
    """
    value = request.inputs.get(name)
    where = f"inputs.{name}"
    if not isinstance(value, Tensor) or value.datatype != "FP32" or len(value.shape) != 2:  # noqa: PLR2004 - rows and dimensions
        raise InvalidArgument(f"'{name}' must be an FP32 tensor [row, dimension]", field=where)
    try:
        value.check()
    except InvalidArgument as error:
        raise InvalidArgument(error.message, field=where) from error
    if 0 in value.shape:
        raise InvalidArgument(f"'{name}' is empty", field=where)
    return value


def number(request: Request, name: str, *, default: float, low: float, high: float) -> float:
    """Return a numeric parameter.

    Raises:
        InvalidArgument: No number, or out of range; names `params.<name>`.
    """
    value = request.params.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise InvalidArgument(
            f"'{name}' must be a number from {low:g} to {high:g}", field=f"params.{name}"
        )
    return value


def whole(request: Request, name: str, *, default: int, low: int, high: int) -> int:
    """Return a parameter that counts something.

    Raises:
        InvalidArgument: No whole number, or out of range; names `params.<name>`.
    """
    value = request.params.get(name, default)
    is_whole = type(value) is int or (isinstance(value, float) and value.is_integer())
    if not is_whole or not low <= value <= high:
        raise InvalidArgument(
            f"'{name}' must be a whole number from {low} to {high}", field=f"params.{name}"
        )
    return int(value)


def flag(request: Request, name: str, *, default: bool) -> bool:
    """Return a true-or-false parameter.

    Raises:
        InvalidArgument: Neither true nor false; names `params.<name>`.
    """
    value = request.params.get(name, default)
    if not isinstance(value, bool):
        raise InvalidArgument(f"'{name}' must be true or false", field=f"params.{name}")
    return value


def missing_package(*packages: str) -> str | None:
    """Return which package is not installed, or None when all are."""
    absent = [package for package in packages if find_spec(package) is None]
    return f"not installed: {', '.join(absent)}" if absent else None
