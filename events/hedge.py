"""Questions that are asked again before their time is over.

nats-server deals a stream's direct gets out over all servers that keep it, also to one that is
stopped or cut off, until the others know it is gone; and what asks a leader while there is none is
answered by nobody, not by the leader that comes either (ADR 0059).
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar


T = TypeVar("T")

AGAIN_S = 0.5
"""Silence after which a question is asked once more; answers to the others still count."""
ASKED_MAX = 10
"""So often a question is asked: until the first one's time is over, 5 s as a rule."""
DIRECT_ASKED_MAX = 3
"""The same of a direct get: each time another copy may be chosen."""


async def hedged(
    ask: Callable[[], Awaitable[T]], *, again_s: float = AGAIN_S, asked_max: int = ASKED_MAX
) -> T:
    """Ask, and while nobody answers ask again; the first answer counts, an error too.

    Args:
        ask: Changes nothing, so that it may be done twice; bounds its own time.
        again_s: Silence after which it is asked again, seconds.
        asked_max: Times that it is asked at most.
    """
    asked = [asyncio.ensure_future(ask())]
    try:
        while True:
            pause_s = again_s if len(asked) < asked_max else None
            await asyncio.wait(asked, timeout=pause_s, return_when=asyncio.FIRST_COMPLETED)
            for answer in asked:
                if answer.done():
                    return answer.result()
            asked.append(asyncio.ensure_future(ask()))
    finally:
        for answer in asked:
            answer.cancel()
        await asyncio.wait(asked)
        for answer in asked:
            if not answer.cancelled():
                answer.exception()  # nobody else will ask
