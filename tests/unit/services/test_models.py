"""The models of a worker: loaded when they are asked for, or at start; cards say what is true."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.catalogue import Catalogue
from schemas.errors import InvalidArgument, ModelUnavailable
from schemas.values import Tensor
from services.workers import devices
from services.workers.engine import Request
from services.workers.engines import onnx
from services.workers.models import Answer, Capacity, Models
from services.workers.tally import Tally
from tests.support import onnx_models as tiny
from tests.support.clock import ManualClock


def models(folder: Path, documents: dict[str, Any]) -> Models:
    """Return the models of a catalogue."""
    catalogue = Catalogue.model_validate({"models": documents})
    return Models(catalogue, "text", folder, allow_fallback=True, capacity=Capacity())


async def test_only_some_are_loaded_at_start(tmp_path: Path) -> None:
    """Those that say so; the others when somebody asks."""
    found = tiny.entries(tmp_path)
    held = models(tmp_path, {**found, "picky": {**found["picky"], "preload": True}})
    await held.preload()
    assert ["picky"] == list(held._cache.residents)
    held.close()


async def test_what_cannot_load_is_on_the_card(tmp_path: Path) -> None:
    """With the reason, until a later try works."""
    document = {**tiny.entries(tmp_path)["doubling"], "preload": True}
    (tmp_path / "doubling.onnx").write_bytes(b"no model")
    held = models(tmp_path, {"doubling": document})
    assert held.offers()[0].available
    await held.preload()
    [offer] = held.offers()
    assert (False, "the file is no ONNX model: it is damaged") == (offer.available, offer.reason)
    with pytest.raises(ModelUnavailable, match="it is damaged"):
        await held.infer("doubling", Request({}))
    tiny.save(tiny.doubling(), tmp_path / "doubling.onnx")
    with pytest.raises(InvalidArgument):
        await held.infer("doubling", Request({}))
    assert held.offers()[0].available
    held.close()


async def test_a_provider_that_turns_out_idle_is_found_at_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library has it, the machine has not: the model is not ready, and says why."""
    wanted = {"providers": ["CUDAExecutionProvider", "CPUExecutionProvider"]}
    monkeypatch.setattr(onnx.OnnxEngine, "_check_providers", lambda self: None)
    document = {**tiny.entries(tmp_path)["doubling"], "params": wanted}
    held = models(tmp_path, {"doubling": document})
    await held.preload()
    [offer] = held.offers()
    assert not offer.available
    assert "CUDAExecutionProvider is not active here" in offer.reason
    held.close()


async def test_a_model_may_have_a_folder_of_its_own(tmp_path: Path) -> None:
    """It is placed and withdrawn while others are served."""
    entry = tiny.entries(tmp_path / "elsewhere")["picky"]
    held = models(tmp_path, {})
    held.place("picky", tiny.spec(entry), tmp_path / "elsewhere")
    await held.preload(["picky", "nobody"])
    index = Tensor(datatype="INT64", shape=(1, 1), data=(3).to_bytes(8, "little"))
    answer = await held.infer("picky", Request({"index": index}))
    assert (30).to_bytes(8, "little") == answer.outputs["value"].data
    with pytest.raises(InvalidArgument, match="no model named nobody"):
        held.place("picky", tiny.spec({**entry, "fallback": "nobody"}), tmp_path)
    assert 1 == (await held.infer("picky", Request({"index": index}))).batch_size
    held.withdraw("picky")
    with pytest.raises(ModelUnavailable, match="knows the model 'picky'"):
        await held.infer("picky", Request({"index": index}))
    held.close()


async def test_the_card_says_what_was_measured(tmp_path: Path) -> None:
    """Of a model in memory: what it runs on, what it takes, how long a call takes by its rows."""
    held = models(tmp_path, {"picky": tiny.entries(tmp_path)["picky"]})
    assert (False, {}) == (held.offers()[0].loaded, held.offers()[0].latency_ms)
    for rows in (1, 2, 2):
        data = Tensor(datatype="INT64", shape=(rows, 1), data=bytes(8 * rows))
        await held.infer("picky", Request({"index": data}))
    [offer] = held.offers()
    assert (True, ("CPUExecutionProvider",), False) == (
        offer.loaded,
        offer.devices,
        offer.isolated,
    )
    assert offer.memory_bytes > 0
    assert {"1", "2"} == offer.latency_ms.keys()
    held.close()


def test_the_machine_is_measured() -> None:
    """Cores and memory; no GPU where its library is not there."""
    found = devices.machine()
    assert found.cores >= 1
    assert found.memory_bytes > 64 * 1024 * 1024
    assert () == devices.gpus("libnot-there.so.1")


async def test_answers_are_kept_where_the_entry_says_so(tmp_path: Path) -> None:
    """For the same inputs, parameters and version; within the room there is."""
    entry = tiny.entries(tmp_path)["picky"]
    documents = {"kept": {**entry, "cache_responses": True}, "not": entry}
    catalogue = Catalogue.model_validate({"models": documents})
    room = Capacity(responses_bytes_max=200)
    held = Models(catalogue, "text", tmp_path, allow_fallback=True, capacity=room)

    async def ask(name: str, number: int, **params: Any) -> Answer:
        data = number.to_bytes(8, "little")
        index = Tensor(datatype="INT64", shape=(1, 1), data=data)
        answer = await held.infer(name, Request({"index": index}, params))
        assert (10 * number).to_bytes(8, "little") == answer.outputs["value"].data
        return answer

    for name in ("kept", "not"):
        for number in (1, 1, 2):
            await ask(name, number)
    calls = [held.counters(name).execution_count for name in ("kept", "not")]
    assert ([2, 3], 1) == (calls, held.counters("kept").cache_hit_count)
    assert "kept" == (await ask("kept", 1)).model
    await ask("kept", 1, threshold=1)
    for number in (3, 4, 5, 6, 1):
        await ask("kept", number)
    assert 8 == held.counters("kept").execution_count
    held.update({"kept": tiny.spec({**documents["kept"], "version": "2"})})
    await ask("kept", 1)
    assert 9 == held.counters("kept").execution_count
    held.close()


async def test_waiting_for_company_is_queue_time(tmp_path: Path) -> None:
    """What an entry lets a request wait is told in its answer, and so in the statistics."""
    tiny.save(tiny.scaling(2, 1), tmp_path / "twice.onnx")
    ports = ([tiny.port(name, "FP32", [-1, 1])] for name in "XY")
    entry = tiny.entry("twice.onnx", *ports, max_batch_size=4, max_queue_delay_us=20_000)
    held, tally = models(tmp_path, {"twice": entry}), Tally("w", ManualClock())
    request = Request({"x": Tensor(datatype="FP32", shape=(1, 1), data=np.float32(3).tobytes())})
    await held.infer("twice", request)
    loaded = held._cache.get("twice")
    assert loaded is not None
    assert loaded.line is not None
    for rows in loaded.line.sizes:
        loaded.line.learn(rows, 0.1)  # for any number of rows: company pays
    loaded.line._delay.note(4)
    with tally.inference("twice") as counted:
        counted.fetched()
        counted.answered(await held.infer("twice", request))
    queue = tally.document({})["models"]["twice"]["requests"]["queue"]
    assert 1 == queue["count"]
    assert queue["ns"] >= 19_000_000
    held.close()
