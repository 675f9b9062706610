"""The latency of a model is measured when it is loaded: on its card before anybody asks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

from clawdbot.cli.models import _latencies
from schemas.api import ModelOffer
from schemas.catalogue import Catalogue, ModelSpec
from schemas.errors import InvalidArgument
from schemas.values import Tensor, Value
from services.workers.calibrating import calibrate
from services.workers.curve import TRIES
from services.workers.engine import BatchEngine, Engine, Request
from services.workers.models import Capacity, Models
from tests.support import onnx_models as tiny


class Counting(BatchEngine):
    """Takes note of how many requests each call has; of more than `most` it takes none."""

    most = 100

    def __init__(self) -> None:
        port = {"name": "x", "kind": "tensor", "datatype": "INT64", "shape": [-1]}
        document = {"modality": "text", "engine": "echo", "max_batch_size": 64}
        spec = ModelSpec.model_validate({**document, "inputs": [port], "outputs": [port]})
        super().__init__(spec, Path())
        self.calls: list[int] = []

    @override
    def batch_key(self, request: Request) -> str | None:
        return request.key or None

    @override
    def rows(self, request: Request) -> int:
        return len(request.inputs)

    @override
    def infer(self, batch: Sequence[Request]) -> list[Mapping[str, Value]]:
        self.calls.append(len(batch))
        if len(batch) > self.most:
            raise InvalidArgument("too many")
        return [{} for _ in batch]


def measured(engine: Engine, request: Request, budget_s: float = 20.0) -> list[int]:
    """Return the rows of the calls that counted."""
    return [rows for rows, _ in calibrate(engine, [request], (1, 2, 4, 8), budget_s)]


def test_every_size_is_measured_as_often_as_the_curve_wants_to_know() -> None:
    """Besides one call of each that only gets the engine used to it."""
    engine = Counting()
    sizes = [1, 2, 4, 8]
    found = measured(engine, Request({"x": "a"}, key="same"))
    assert [size for size in sizes for _ in range(TRIES)] == found
    assert [size for size in sizes for _ in range(TRIES + 1)] == engine.calls


def test_rows_of_the_request_are_counted() -> None:
    """A warm-up of three rows is computed once and twice, in calls of three and of six rows."""
    engine = Counting()
    found = measured(engine, Request({"x": "a", "y": "b", "z": "c"}, key="same"))
    assert {3, 6} == set(found)
    assert {1, 2} == set(engine.calls)


def test_what_cannot_be_batched_is_measured_alone() -> None:
    """One request a call."""
    engine = Counting()
    assert [1] * TRIES == measured(engine, Request({"x": "a"}))
    assert [1] * (TRIES + 1) == engine.calls


def test_no_time_is_enough_for_one_call() -> None:
    """So that something is known of each model; no other is begun that would not be over."""
    engine = Counting()
    assert [1] == measured(engine, Request({"x": "a"}, key="same"), 0.0)
    assert [1] == engine.calls


def test_what_it_refuses_ends_it() -> None:
    """A model that cannot compute so many rows is not asked for more."""
    engine = Counting()
    engine.most = 2
    assert {1, 2} == set(measured(engine, Request({"x": "a"}, key="same")))
    assert 4 == engine.calls[-1]
    assert [] == list(calibrate(engine, [], (1, 2), 1.0))


def models(folder: Path, **entry: Any) -> Models:
    """Return one model that takes 1 to 4 rows."""
    document = {**tiny.entries(folder)["picky"], "max_batch_size": 4, **entry}
    catalogue = Catalogue.model_validate({"models": {"picky": document}})
    capacity = Capacity(calibrate_s=20.0)
    return Models(catalogue, "text", folder, allow_fallback=True, capacity=capacity)


@pytest.mark.parametrize("isolation", ["none", "process"])
async def test_a_card_has_latencies_before_anybody_asked(tmp_path: Path, isolation: str) -> None:
    """By rows, and none of these calls is in the statistics; what is asked takes their place."""
    held = models(tmp_path, preload=True, isolation=isolation)
    await held.preload()
    [offer] = held.offers()
    assert ["1", "2", "4"] == list(offer.latency_ms)
    assert all(taken > 0 for taken in offer.latency_ms.values())
    assert (0, {}) == (held.counters("picky").execution_count, held.calls())
    data = Tensor(datatype="INT64", shape=(3, 1), data=bytes(24))
    await held.infer("picky", Request({"index": data}))
    [offer] = held.offers()
    assert ["1", "2", "3", "4"] == list(offer.latency_ms)
    assert 1 == held.counters("picky").execution_count
    held.close()


async def test_a_model_is_measured_once(tmp_path: Path) -> None:
    """A model that comes back takes what is known; another entry of its name is measured anew."""
    held = models(tmp_path, preload=True)
    await held.preload()
    before = held.counters("picky").calibrated
    loaded = held._cache.get("picky")
    assert loaded is not None
    again = held._loader.open("picky", loaded.spec)
    assert again.line is not None
    assert before is held.counters("picky").calibrated
    assert TRIES == before[4].count
    again.engine.close()
    held.update({"picky": loaded.spec})
    await held.preload()
    assert before is not held.counters("picky").calibrated
    assert TRIES == held.counters("picky").calibrated[4].count
    held.close()


async def test_it_can_be_switched_off(tmp_path: Path) -> None:
    """Then it is known what was asked, and nothing else."""
    document = {**tiny.entries(tmp_path)["picky"], "preload": True}
    catalogue = Catalogue.model_validate({"models": {"picky": document}})
    held = Models(catalogue, "text", tmp_path, allow_fallback=True, capacity=Capacity())
    await held.preload()
    assert {} == held.offers()[0].latency_ms
    held.close()


def test_the_quickest_worker_is_shown() -> None:
    """By rows, for people."""
    offers = [
        ModelOffer(worker="a", served_by="m", available=True, reason="", latency_ms=latency_ms)
        for latency_ms in ({"1": 2.0, "16": 9.25}, {}, {"1": 1.5, "2": 3.0})
    ]
    assert "1: 1.5, 2: 3, 16: 9.25" == _latencies(offers)
