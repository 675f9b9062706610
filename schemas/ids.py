"""Typed identifiers. Each is one NATS subject token, so none can smuggle a dot or a wildcard."""

import re
import secrets
import time
from typing import Annotated

from pydantic import StringConstraints

from schemas.errors import InvalidArgument


TOKEN = r"^[A-Za-z0-9_-]{1,64}$"  # noqa: S105 - a subject token, not a secret
TOKEN_RULE = "use 1 to 64 letters, digits, '_' or '-'"  # noqa: S105 - as above
MODEL_NAME = r"^[A-Za-z0-9][A-Za-z0-9_./-]{0,127}$"
MODEL_NAME_RULE = "use 1 to 128 letters, digits, '_', '.', '/' or '-', a letter or digit first"

TenantId = Annotated[str, StringConstraints(pattern=TOKEN)]
RunId = Annotated[str, StringConstraints(pattern=TOKEN)]
NodeId = Annotated[str, StringConstraints(pattern=TOKEN)]
WorkflowName = Annotated[str, StringConstraints(pattern=TOKEN)]
TemplateId = Annotated[str, StringConstraints(pattern=TOKEN)]
ModelName = Annotated[str, StringConstraints(pattern=MODEL_NAME)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]

DEFAULT_TENANT: TenantId = "default"

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_PAIRS = tuple(first + second for first in _CROCKFORD for second in _CROCKFORD)
"""What ten bits are in base 32."""


def new_id() -> str:
    """Return a new ULID: 48 bits of milliseconds, then 80 random bits; sorts by creation time.

    Source: github.com/ulid/spec.
    """
    number = (time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
    return "".join([_PAIRS[(number >> shift) & 1023] for shift in range(120, -10, -10)])


def valid_token(text: str, *, field: str) -> str:
    """Return `text` when it is one subject token.

    Raises:
        InvalidArgument: It is not; names the field.
    """
    if not re.fullmatch(TOKEN, text):  # `$` alone would allow a newline
        raise InvalidArgument(TOKEN_RULE, field=field)
    return text
