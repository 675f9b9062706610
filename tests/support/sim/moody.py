"""An engine that gives back its text, unless the seed says otherwise."""

import random
from collections.abc import Mapping, Sequence

from typing_extensions import override

from schemas.errors import EngineFailed, ModelUnavailable
from schemas.values import Value
from services.workers.engine import Engine, Request
from services.workers.engines import fields


MOODS: dict[str, random.Random] = {}
"""Where moods are drawn from: `now`, while a world runs."""


class MoodyEngine(Engine):
    """Params: `refuses`, the chance of a retryable error; `breaks`, that of a terminal one."""

    @override
    def infer(self, batch: Sequence[Request]) -> list[Mapping[str, Value]]:
        return [self._one(request) for request in batch]

    def _one(self, request: Request) -> Mapping[str, Value]:
        chance = MOODS["now"]
        if chance.random() < float(request.params.get("refuses", 0)):
            raise ModelUnavailable("not in the mood")
        if chance.random() < float(request.params.get("breaks", 0)):
            raise EngineFailed("not in the mood, and never will be")
        return {"text": fields.text(request)}
