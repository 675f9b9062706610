"""Values on the command line: inputs read, outputs written."""

import json
import sys
from pathlib import Path
from typing import Any

from clawdbot.client import Client
from schemas.errors import InvalidArgument
from schemas.values import Binary, BlobRef, Tensor, Value


def inputs_of(texts: list[str] | None, files: list[str] | None) -> dict[str, Any]:
    """Read NAME=TEXT, NAME:=JSON and NAME=PATH.

    Raises:
        InvalidArgument: None of them.
    """
    found: dict[str, Any] = {}
    for item in texts or ():
        name, equals, text = item.partition("=")
        if not equals:
            raise InvalidArgument(f"'{item}' is not NAME=TEXT or NAME:=JSON", field="--input")
        if not name.endswith(":"):
            found[name] = text
            continue
        try:
            found[name[:-1]] = json.loads(text)
        except ValueError as error:
            raise InvalidArgument(f"'{text}' is not JSON: {error}", field=name[:-1]) from error
    for item in files or ():
        name, equals, path = item.partition("=")
        if not equals:
            raise InvalidArgument(f"'{item}' is not NAME=PATH", field="--file")
        found[name] = Path(path)
    return found


def targets_of(save: list[str] | None) -> dict[str, Path]:
    """Read NODE.OUTPUT=PATH.

    Raises:
        InvalidArgument: Something else.
    """
    found: dict[str, Path] = {}
    for item in save or ():
        path, equals, target = item.partition("=")
        if not equals or not path or not target:
            raise InvalidArgument(f"'{item}' is not NODE.OUTPUT=PATH", field="--save")
        found[path] = Path(target)
    return found


def bytes_of(client: Client, value: Value) -> bytes:
    """Return a value as a file holds it."""
    if isinstance(value, Binary | BlobRef | Tensor):
        return client.fetch(value)
    return (value if isinstance(value, str) else json.dumps(value)).encode()


def write_bytes(data: bytes) -> None:
    """Write bytes to stdout, but not onto somebody's screen.

    Raises:
        InvalidArgument: It is a terminal.
    """
    if sys.stdout.isatty():
        raise InvalidArgument(f"the output is {len(data)} bytes; send them to a file: ... > FILE")
    sys.stdout.buffer.write(data)
