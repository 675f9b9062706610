"""Gives back its text, a word at a time: to try answers in parts, and calling them off."""

import asyncio
import re
from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from schemas.errors import InvalidArgument
from schemas.values import Value
from services.workers.engine import AsyncEngine, Request
from services.workers.engines import fields


DELAY_MS_MAX = 60_000


class RepeatEngine(AsyncEngine):
    """Output `text` is input `text`; param `delay_ms` (0) is the time before each word."""

    @override
    async def answer(self, request: Request) -> Mapping[str, Value]:
        text, delay_s = fields.text(request), _delay_ms(request.params) / 1000
        for word in re.findall(r"\s*\S+", text):
            await asyncio.sleep(delay_s)
            if request.emit is not None:
                request.emit({"text": word})
        return {"text": text}


def _delay_ms(params: Mapping[str, Any]) -> float:
    delay_ms = params.get("delay_ms", 0)
    if type(delay_ms) not in {int, float} or not 0 <= delay_ms <= DELAY_MS_MAX:
        raise InvalidArgument(f"send 0 to {DELAY_MS_MAX} milliseconds", field="params.delay_ms")
    return float(delay_ms)
