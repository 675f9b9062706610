"""Gives back the text it got: for benchmarks, tests and first steps."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from typing_extensions import override

from schemas.values import Value
from services.workers.engine import Engine, Request
from services.workers.engines import fields


class EchoEngine(Engine):
    """Output `text` is input `text`."""

    blocking: ClassVar[bool] = False

    @override
    def infer(self, batch: Sequence[Request]) -> list[Mapping[str, Value]]:
        return [{"text": fields.text(request)} for request in batch]
