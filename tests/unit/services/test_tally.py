"""What a worker counts of its requests, by model and by where the time went."""

import pytest

from services.workers.models import Answer
from services.workers.tally import Tally
from tests.support.clock import ManualClock


def counts(tally: Tally, model: str) -> dict[str, int]:
    """Return how often each phase was counted, those that were."""
    found = tally.document({})["models"][model]["requests"]
    return {phase: item["count"] for phase, item in found.items() if item["count"]}


def ask(tally: Tally, answer: Answer) -> None:
    """Count a request that was answered."""
    with tally.inference("asked") as counted:
        assert 1 == tally.in_flight
        counted.fetched()
        counted.answered(answer)


def test_requests_are_counted_under_the_model_that_ran() -> None:
    """With the times the answer says; failures under the one that was asked for."""
    tally = Tally("w", ManualClock(1000.5))
    ask(tally, Answer({}, "ran", wait_ms=2, load_ms=1, compute_ms=5))
    with pytest.raises(ValueError, match="no"), tally.inference("asked"):
        raise ValueError("no")
    assert {"fail": 1} == counts(tally, "asked")
    computed = ("success", "queue", "compute_input", "compute_infer", "compute_output")
    assert dict.fromkeys(computed, 1) == counts(tally, "ran")
    document = tally.document({"ran": {4: (3, 700)}})
    found = document["models"]["ran"]
    assert (3_000_000, 5_000_000) == tuple(
        found["requests"][phase]["ns"] for phase in ("queue", "compute_infer")
    )
    assert {"4": {"count": 3, "ns": 700}} == found["calls"]
    assert (1_000_500, 0, "w") == (
        found["last_inference"],
        document["in_flight"],
        document["worker"],
    )


def test_what_was_computed_before_is_a_hit() -> None:
    """A success that took no engine's time; a miss is computed and counted as both."""
    tally = Tally("w", ManualClock())
    ask(tally, Answer({}, "m", 0, 0, 0, remembered=True))
    assert {"success": 1, "cache_hit": 1} == counts(tally, "m")
    ask(tally, Answer({}, "m", 0, 0, 1, remembered=False))
    found = counts(tally, "m")
    assert (2, 1, 1, 1) == (
        found["success"],
        found["cache_hit"],
        found["cache_miss"],
        found["compute_infer"],
    )
