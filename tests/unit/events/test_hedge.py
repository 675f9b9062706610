"""Questions that are asked again."""

import asyncio
from collections.abc import Callable, Coroutine

import pytest

from events.hedge import hedged


Answer = Callable[[], Coroutine[None, None, str]]


def _one_after_the_other(*answers: Answer) -> Answer:
    """Return what answers each time differently."""
    left = list(answers)

    async def ask() -> str:
        return await left.pop(0)()

    return ask


async def _silent() -> str:
    await asyncio.Event().wait()
    return "never"


async def _well() -> str:
    return "well"


async def _refused() -> str:
    raise LookupError("not there")


async def test_the_first_answer_counts() -> None:
    """Silence is followed by the same question, whose answer is as good."""
    ask = _one_after_the_other(_silent, _silent, _well)
    assert "well" == await hedged(ask, again_s=0.001)


async def test_a_prompt_answer_is_the_only_one() -> None:
    """Nothing is asked twice without need."""
    assert "well" == await hedged(_one_after_the_other(_well))


async def test_an_error_is_an_answer() -> None:
    """What is refused is not asked again."""
    with pytest.raises(LookupError):
        await hedged(_one_after_the_other(_silent, _refused), again_s=0.001)


async def test_an_early_question_still_counts() -> None:
    """It is asked so often and no more; whichever is answered ends it, and none is left behind."""
    answer = asyncio.Event()
    asked = 0

    async def ask() -> str:
        nonlocal asked
        asked += 1
        if asked == 3:
            asyncio.get_running_loop().call_later(0.01, answer.set)
        await answer.wait()
        return "late"

    before = asyncio.all_tasks()
    assert "late" == await hedged(ask, again_s=0.001, asked_max=3)
    assert (3, before) == (asked, asyncio.all_tasks())
