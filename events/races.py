"""What who loses a compare-and-swap does: step aside for a random while, then read and try again.

Without the pause whoever is quick wins every time, and the slow one's tries are used up.
"""

import asyncio
import random


RACES_MAX = 16
"""Tries of one change, before it is refused as `ABORTED`."""
PAUSE_S = 0.005
"""The longest pause after the first lost race; each one after may be twice as long."""
LONGEST_S = 0.5
_chance = random.SystemRandom()


async def step_aside(lost: int) -> None:
    """Wait a random while, longer in the mean the more races were lost before this one."""
    longest = min(LONGEST_S, PAUSE_S * 2**lost)
    await asyncio.sleep(_chance.random() * longest)
