"""What a worker counts of its requests, by model and by where the time went."""

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

import orjson
import pytest

from events.models import Offer, WorkerCard
from schemas.errors import Cancelled, DeadlineExceeded
from schemas.values import Value
from services.gateway.inference.kept import WORKERS_MAX, Kept
from services.gateway.inference.statistics import Tallies, memory_of, summed
from services.workers.engine import Request
from services.workers.growth import RESPONSES_MAX
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


def figures(tally: Tally, model: str) -> dict[str, int]:
    """Return how often each figure of each response was counted."""
    found = tally.document({})["models"][model]["responses"]
    return {key: item["count"] for key, item in found.items()}


async def grown(tally: Tally, words: int, outputs: Mapping[str, Value]) -> list[str]:
    """Count a request that was answered in so many parts; return what was sent."""
    taken: list[Mapping[str, Value]] = []
    sent: list[str] = []

    async def send(outputs: Mapping[str, Value], headers: dict[str, str]) -> None:
        sent.append(f"{outputs['text']}{headers['n']}")

    with tally.inference("m") as counted:
        counted.fetched()
        told = counted.sending(send)
        request = counted.watched(Request({}, emit=taken.append), grows=True)
        assert request.emit is not None
        for number in range(words):
            request.emit({"text": f"w{number}"})
        for number, part in enumerate(taken):
            await told(part, {"n": f"-{number}"})
        counted.answered(Answer(outputs, "m", wait_ms=0, load_ms=0, compute_ms=1))
    return sent


COMPUTED = ("compute_infer", "compute_output")


def expected(**ends: int) -> dict[str, int]:
    """Return figures of responses that ended so: `success_0=2` of the first one."""
    found: dict[str, int] = {}
    for key, count in ends.items():
        end, _, index = key.rpartition("_")
        found[f"{index}.{end}"] = count
        for figure in {"cancel": (), "empty_response": COMPUTED[:1]}.get(end, COMPUTED):
            name = f"{index}.{figure}"
            found[name] = found.get(name, 0) + count
    return found


async def test_each_response_is_counted_by_its_index() -> None:
    """Parts as they come; at the end what no part had, or an empty one; a whole one is one."""
    tally = Tally("w", ManualClock())
    assert ["w0-0", "w1-1"] == await grown(tally, 2, {"text": "w0w1"})
    assert expected(success_0=1, success_1=1, empty_response_2=1) == figures(tally, "m")
    await grown(tally, 1, {"text": "w0", "usage": "7"})
    await grown(tally, 0, {"text": "whole"})
    found = figures(tally, "m")
    assert expected(success_0=3, success_1=2, empty_response_2=1) == found
    document = tally.document({})["models"]["m"]["responses"]
    for index in ("0", "1"):
        parts = sum(document[f"{index}.{figure}"]["ns"] for figure in COMPUTED)
        assert parts == document[f"{index}.success"]["ns"] > 0


@pytest.mark.parametrize(
    ("error", "end"),
    [
        (ValueError("no"), "fail"),
        (DeadlineExceeded("late"), "fail"),
        (Cancelled("withdrawn"), "cancel"),
        (asyncio.CancelledError(), "cancel"),
    ],
)
def test_where_an_answer_broke_off(error: BaseException, end: str) -> None:
    """After its first part."""
    tally = Tally("w", ManualClock())
    with contextlib.suppress(type(error)), tally.inference("m") as counted:
        counted.fetched()
        request = counted.watched(Request({}, emit=lambda _: None), grows=True)
        assert request.emit is not None
        request.emit({"text": "a"})
        raise error
    assert expected(success_0=1, **{f"{end}_1": 1}) == figures(tally, "m")


def test_one_response_of_each_request_is_not_told_apart() -> None:
    """Of models that never answer in parts, and of what was computed before."""
    tally = Tally("w", ManualClock())
    ask(tally, Answer({}, "m", wait_ms=0, load_ms=0, compute_ms=1))
    with tally.inference("m") as counted:
        counted.fetched()
        counted.watched(Request({}), grows=True)
        counted.answered(Answer({}, "m", 0, 0, 0, remembered=True))
    assert {} == figures(tally, "m")


async def test_late_responses_are_counted_together() -> None:
    """However long an answer is, so many are told apart."""
    tally, more = Tally("w", ManualClock()), 5
    await grown(tally, RESPONSES_MAX + more, {"text": "all"})
    found = figures(tally, "m")
    last = RESPONSES_MAX - 1
    assert RESPONSES_MAX == len({key.partition(".")[0] for key in found})
    assert (1, more + 1, 1) == (
        found[f"{last - 1}.success"],
        found[f"{last}.success"],
        found[f"{last}.empty_response"],
    )


def test_responses_of_workers_are_added_up() -> None:
    """By their index, in the order of numbers."""
    duration = {"count": 2, "ns": 20}
    tallies = [{"responses": {f"{index}.success": duration}} for index in (10, 2, 10)]
    found = summed("m", "1", tallies).response_stats
    assert ["2", "10"] == list(found)
    assert (4, 40, 0) == (
        found["10"].success.count,
        found["10"].success.ns,
        found["10"].cancel.count,
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
        b'{"worker": "w", "at": 1, "models": {"m": {"responses": {"one": {"count": 1}}}}}',
        b'{"worker": "w", "at": 1, "models": {"m": {"responses": {"0.x": {"count": "x"}}}}}',
        b'{"worker": "w", "models": {}}',
    ],
)
async def test_what_is_no_tally_changes_nothing(data: bytes) -> None:
    """Whoever reaches the bus may send one."""
    tallies = Tallies(None, None, ManualClock(), 1.0)  # type: ignore[arg-type] # nobody is asked
    await tallies.hear(Heard(orjson.dumps(said("a", 1.0, 3))))
    await tallies.hear(Heard(data))
    assert (3, 3, 3) == total(tallies.kept)
