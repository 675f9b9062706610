"""The JSON files of a Hugging Face folder: which ask for code, and are not handed to the library.

`trust_remote_code=False` alone has not kept every version of every library from running what
`auto_map` names (CVE-2026-22807).
"""

from collections.abc import Iterator
from typing import Any

import orjson

from schemas.errors import ModelUnavailable


CONFIG_BYTES_MAX = 64 * 1024 * 1024
_CODE = {"auto_map", "custom_pipelines", "custom_generate"}
"""Keys that name code inside the folder, or elsewhere."""
_KERNELS = {"attn_implementation", "_attn_implementation", "experts_implementation"}
"""Keys whose value may name a repository of compiled kernels."""


def check_document(name: str, data: bytes) -> None:
    """Refuse a JSON file that names code.

    Raises:
        ModelUnavailable: Names the file and the key.
    """
    if len(data) > CONFIG_BYTES_MAX:
        raise ModelUnavailable(f"{name} has over {CONFIG_BYTES_MAX} bytes")
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise ModelUnavailable(f"{name} is no JSON") from error
    for key, value in _pairs(document):
        if key in _CODE:
            raise ModelUnavailable(
                f"{name} names code ('{key}'), which is never run: save the model as one of the "
                "library's own classes, or write an engine for it"
            )
        if key in _KERNELS and isinstance(value, str) and "/" in value:
            raise ModelUnavailable(f"{name} names kernels elsewhere: '{key}'")


def _pairs(document: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key of a JSON document with its value, wherever it is."""
    pending = [document]
    while pending:
        match pending.pop():
            case dict() as found:
                yield from found.items()
                pending += found.values()
            case list() as found:
                pending += found
            case _:
                pass  # a leaf
