"""How much leaves when, of what waits to share a message: all of it without a clock."""

import asyncio

import pytest

from services.bundles import Item
from services.lanes import BRIEF_S, FEW, LONG_S, Asked, Lane, Pace, Sent


def asked(loop: asyncio.AbstractEventLoop, number: int) -> Asked:
    """Return a request that nobody answered."""
    return Asked(Item(str(number), {}, b"x"), loop.create_future(), 1.0, 1.0)


def waiting(pace: Pace, count: int) -> Lane:
    """Return a lane in which so many wait."""
    loop = asyncio.get_running_loop()
    return Lane("desk", pace, [asked(loop, number) for number in range(count)])


@pytest.mark.parametrize(
    ("ahead", "sizes"), [(1, [40]), (2, [20, 20]), (4, [10, 10, 10, 10]), (64, [FEW] * 5)]
)
async def test_all_that_wait_are_spread_over_the_messages(ahead: int, sizes: list[int]) -> None:
    """Evenly, and never so that a message has few."""
    assert sizes == [len(together) for together in waiting(Pace(ahead), 40).leave(late=False)]


@pytest.mark.parametrize("ahead", [1, 2, 4])
async def test_behind_so_many_messages_it_waits(ahead: int) -> None:
    """Until one is answered, or it waited long enough."""
    assert not Lane("desk", Pace(ahead), unanswered=ahead - 1).busy
    lane = waiting(Pace(ahead), 3)
    lane.unanswered = ahead
    assert lane.busy
    assert [] == list(lane.leave(late=False))
    assert [3] == [len(together) for together in lane.leave(late=True)]


async def test_it_waits_as_long_as_is_set() -> None:
    """Less where answers take long, never more than that."""
    assert 0.0 == waiting(Pace(hold_s=0.0), 1).hold_s
    lane = waiting(Pace(hold_s=0.2), 1)
    assert 0.2 == lane.hold_s
    for _ in range(100):
        lane.over(Sent(lane, 1, at=0.0), 2 * LONG_S)
    assert BRIEF_S == lane.hold_s
    lane.pace = Pace(hold_s=BRIEF_S / 2)
    assert BRIEF_S / 2 == lane.hold_s
