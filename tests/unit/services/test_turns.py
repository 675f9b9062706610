"""Whose submissions are let past whose, and how many of them."""

from collections import Counter

from events.subjects import submit
from services.orchestrator.turns import Turns


SLACK = 4
FLOOD = submit("loud", "flood")


def flooded(count: int, waiting: dict[str, int], **weights: float) -> Turns:
    """Return turns after so many of the flood began, while it and others wait."""
    turns = Turns(weights, SLACK)
    turns.waiting({FLOOD: 1000})
    for _ in range(count):
        turns.began(FLOOD)
    turns.waiting({FLOOD: 1000} | waiting)
    return turns


def served(turns: Turns, rounds: int) -> Counter[str]:
    """Let past who is due, again and again, while the head of the queue goes on; count all."""
    counts: Counter[str] = Counter()
    for _ in range(rounds):
        chosen = turns.behind([FLOOD], 8)
        for subject, due in chosen or [(FLOOD, SLACK + 1)]:
            turns.began(subject, due)
            counts[subject] += due
    return counts


def test_nobody_goes_past_who_is_alone() -> None:
    """Not even behind itself."""
    assert [] == flooded(500, {}).behind([FLOOD], 8)


def test_who_comes_later_begins_where_the_others_are() -> None:
    """It gets no arrears of a time in which it asked for nothing, and its share from then on."""
    quiet = submit("quiet", "w")
    turns = flooded(500, {quiet: 3})
    assert [] == turns.behind([FLOOD], 8)
    for _ in range(SLACK + 1):
        turns.began(FLOOD)
    assert [(quiet, SLACK + 1)] == turns.behind([FLOOD], 8)


def test_weights_and_priorities_are_kept() -> None:
    """Three for one between tenants; four, one, a quarter between workflows of one tenant."""
    heavy = submit("heavy", "w")
    counts = served(flooded(0, {heavy: 10**6}, heavy=3.0), 1000)
    assert 2.8 < counts[heavy] / counts[FLOOD] < 3.2
    high, low = submit("loud", "high"), submit("loud", "low")
    turns = flooded(0, {high: 10**6, low: 10**6})
    assert {high, low, FLOOD} == set(turns.unknown([high, low, FLOOD]))
    turns.has_lane(high, "high")
    turns.has_lane(low, "low")
    counts = served(turns, 1000)
    assert 3.5 < counts[high] / counts[FLOOD] < 4.5
    assert 3.5 < counts[FLOOD] / counts[low] < 4.5


def test_many_workflows_of_one_tenant_are_one_share() -> None:
    """Who spreads its flood over workflows gets no more."""
    spread = {submit("loud", f"w{number}"): 10**6 for number in range(20)}
    quiet = submit("quiet", "w")
    counts = served(flooded(0, {quiet: 10**6} | spread), 2000)
    loud = sum(count for subject, count in counts.items() if subject != quiet)
    assert 0.8 < counts[quiet] / loud < 1.25


def test_who_waits_no_more_is_forgotten() -> None:
    """What is remembered is as much as there are who wait."""
    turns = flooded(10, {submit(f"t{number}", "w"): 1 for number in range(100)})
    turns.waiting({FLOOD: 1})
    assert {"loud"} == turns._tenants.had.keys() == turns._workflows.keys()
