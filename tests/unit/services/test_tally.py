"""What a worker counts of its requests, by model and by where the time went."""

from typing import Any

import orjson
import pytest

from events.models import Offer, WorkerCard
from services.gateway.inference.kept import WORKERS_MAX, Kept
from services.gateway.inference.statistics import Tallies, memory_of, summed
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


def said(worker: str, at: float, count: int, model: str = "m", rows: int = 1) -> dict[str, Any]:
    """Return what a worker tells."""
    duration = {"count": count, "ns": 10 * count}
    counted = {
        "last_inference": round(at),
        "requests": {"success": duration},
        "calls": {str(rows): duration},
    }
    return {"worker": worker, "at": at, "models": {model: counted}}


def total(kept: Kept, model: str = "m") -> tuple[int, int, int]:
    """Return inferences, executions and successes of a model, over all workers."""
    found = summed(model, "1", kept.of(model))
    return (
        found.inference_count,
        found.execution_count,
        found.inference_stats.success.count,
    )


def test_what_a_worker_counted_stays() -> None:
    """The newest word of each, in whichever order they come; also of those that are gone."""
    kept = Kept()
    assert (0, 0, 0) == total(kept)
    kept.hear(said("a", 1.0, 3))
    kept.hear(said("b", 1.0, 2, rows=4))
    assert (11, 5, 5) == total(kept)
    kept.hear(said("a", 3.0, 7))
    kept.hear(said("a", 2.0, 5))
    assert (15, 9, 9) == total(kept)
    assert 3 == summed("m", "1", kept.of("m")).last_inference
    assert (0, 0, 0) == total(kept, "other")


def test_workers_beyond_the_limit_are_a_sum() -> None:
    """Nothing falls, however many workers come and go."""
    kept = Kept()
    for number in range(WORKERS_MAX + 10):
        kept.hear(said(f"w{number}", 1.0, 1))
        assert number + 1 == total(kept)[0]
    assert WORKERS_MAX == len(kept._tallies)


def test_memory_is_what_workers_measured() -> None:
    """Of the model itself, where it is in memory; the processor's and the GPUs'."""

    def card(worker: str, *offers: Offer) -> WorkerCard:
        return WorkerCard(worker=worker, modality="text", offers=offers, at=0.0)

    has: dict[str, Any] = {"served_by": "m", "loaded": True}
    cards = [
        card("a", Offer(model="m", **has, memory_bytes=10), Offer(model="other", served_by="m")),
        card("b", Offer(model="m", **has, memory_bytes=5, device_bytes=7)),
        card("c", Offer(model="m", served_by="m"), Offer(model="n", **has, memory_bytes=99)),
    ]
    found = [(item.type, item.byte_size) for item in memory_of("m", cards)]
    assert [("CPU", 15), ("GPU", 7)] == found
    assert () == memory_of("other", cards)


class Heard:
    """A message of core NATS."""

    subject = "clawdbot.v1.default.tally.text.w"

    def __init__(self, data: bytes) -> None:
        self.data = data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no",
        b"[]",
        b"{}",
        b'{"models": 7}',
        b'{"worker": "w", "at": 1, "models": {"m": 7}}',
        b'{"worker": "w", "at": 1, "models": {"m": {"calls": {"one": {"count": 1}}}}}',
        b'{"worker": "w", "at": 1, "models": {"m": {"requests": {"success": {"ns": "x"}}}}}',
        b'{"worker": "w", "models": {}}',
    ],
)
async def test_what_is_no_tally_changes_nothing(data: bytes) -> None:
    """Whoever reaches the bus may send one."""
    tallies = Tallies(None, None, ManualClock(), 1.0)  # type: ignore[arg-type] # nobody is asked
    await tallies.hear(Heard(orjson.dumps(said("a", 1.0, 3))))
    await tallies.hear(Heard(data))
    assert (3, 3, 3) == total(tallies.kept)
