"""A worker's memory: what is loaded when, who goes for whom; nobody loses a model in use."""

import asyncio
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from typing_extensions import override

from schemas.catalogue import Catalogue, ModelSpec
from schemas.errors import EngineFailed, InvalidArgument, ModelUnavailable
from schemas.values import Tensor, Value
from services.workers import loading
from services.workers.engine import Engine, Request
from services.workers.engines import engine_of
from services.workers.loaded import HALF_LIFE_S, Loaded
from services.workers.memory import Budget, Size
from services.workers.models import Capacity, Models
from tests.support import onnx_models as tiny


MIB = 1024 * 1024


class Sized(Engine):
    """Takes as many MiB as its version says, gives back its version; waits where it is told to."""

    loads: ClassVar[list[str]] = []
    closed: ClassVar[list[str]] = []
    warmed: ClassVar[list[Value]] = []
    gates: ClassVar[dict[str, threading.Event]] = {}
    """By source: what loading, or computing of `source!`, waits for."""
    is_closed = False

    def _wait(self, gate: str) -> None:
        assert self.gates.get(gate, _open).wait(10), gate

    @override
    def load(self) -> None:
        self.loads.append(str(self.spec.source))
        self._wait(str(self.spec.source))
        if "broken" in self.spec.description:
            raise ModelUnavailable("it is broken")

    @override
    def memory(self) -> int:
        return 0 if self.is_for_gpu() else int(self.spec.version) * MIB

    @override
    def is_for_gpu(self) -> bool:
        return self.spec.description == "gpu"

    @override
    def device_memory(self) -> int:
        return int(self.spec.version) * MIB if self.is_for_gpu() else 0

    @override
    def infer(self, batch: Sequence[Request]) -> list[Mapping[str, Value]]:
        assert not self.is_closed, "it computes, and is unloaded"
        self._wait(f"{self.spec.source}!")
        for request in batch:
            if request.inputs.get("text") == "poison":
                raise EngineFailed("it is poison")
            if request.inputs.get("text") == "warm":
                self.warmed.append(self.spec.source)
        return [{"text": self.spec.version} for _ in batch]

    @override
    def close(self) -> None:
        self.is_closed = True
        self.closed.append(str(self.spec.source))


_held: list[Models] = []
_open = threading.Event()
_open.set()


@pytest.fixture(autouse=True)
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Sized]]:
    """Every model is `Sized`."""
    monkeypatch.setattr(
        loading,
        "engine_of",
        lambda spec, folder: (
            Sized(spec, folder) if spec.engine == "sized" else engine_of(spec, folder)
        ),
    )
    really = loading.Loader.open

    def open_in_a_second(loader: loading.Loader, name: str, spec: ModelSpec) -> Loaded:
        loaded = really(loader, name, spec)
        loaded.load_s, loaded.warm_s = 1.0, 0.0  # else who goes depends on how busy the machine is
        return loaded

    monkeypatch.setattr(loading.Loader, "open", open_in_a_second)
    for record in (Sized.loads, Sized.closed, Sized.warmed):
        record.clear()
    Sized.gates.clear()
    yield Sized
    for gate in Sized.gates.values():
        gate.set()
    for held in _held:  # what its threads still do is of this test, not of the next
        held._loaders.shutdown()
        held._pool.shutdown()
    _held.clear()


def document(name: str, mib: int = 1, **rest: Any) -> dict[str, Any]:
    """Return the catalogue entry of a model."""
    port = {"name": "text", "kind": "text"}
    return {
        "modality": "text",
        "engine": "sized",
        "inputs": [port],
        "outputs": [port],
        "source": name,
        "version": str(mib),
        **rest,
    }


def spec(name: str, mib: int = 1, **rest: Any) -> ModelSpec:
    """Return it as it is read."""
    return ModelSpec.model_validate(document(name, mib, **rest))


def models(sizes: Mapping[str, int], mib_max: int | None, **capacity: Any) -> Models:
    """Return models of so many MiB each, in a worker that has room for so many."""
    catalogue = Catalogue.model_validate(
        {"models": {name: document(name, mib) for name, mib in sizes.items()}}
    )
    budget = None if mib_max is None else mib_max * MIB
    room = Capacity(threads=4, budget=Budget(budget), **capacity)
    _held.append(Models(catalogue, "text", Path(), allow_fallback=True, capacity=room))
    return _held[-1]


async def ask(held: Models, name: str, text: str = "hi", **rest: Any) -> Value:
    """Return what a model says."""
    return (await held.infer(name, Request({"text": text}, **rest))).outputs["text"]


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - of threads, which set no events
            await asyncio.sleep(0.001)


def is_busy(held: Models, name: str) -> bool:
    """Tell whether a model computes."""
    loaded = held._cache.get(name)
    return loaded is not None and loaded.line is not None and loaded.line.busy


async def test_what_is_worth_least_goes() -> None:
    """Of models that cost the same to load, the one that is used least; the budget is kept."""
    held = models({"a": 1, "b": 1, "c": 1}, 2)
    for name in ("a", "a", "b", "c", "a"):
        assert "1" == await ask(held, name)
    assert ["a", "b", "c"] == Sized.loads
    await until(lambda: held._cache.used.host == 2 * MIB)
    assert ({"a", "c"}, ["b"]) == (set(held._cache.residents), Sized.closed)
    assert (1, 3) == (held.counters("b").eviction_count, held.counters("a").execution_count)
    held.close()


def test_worth_is_loading_time_times_use_for_each_byte() -> None:
    """It fades with time."""
    first = Loaded("a", spec("a"), Sized(spec("a"), Path()), size_bytes=10, cost_s=2.0, use=4.0)
    assert 0.8 == pytest.approx(first.worth(0.0))
    assert 0.4 == pytest.approx(first.worth(HALF_LIFE_S))
    first.take(HALF_LIFE_S)
    assert 3.0 == pytest.approx(first.use)


async def test_one_large_model_goes_for_two_small_ones_and_back() -> None:
    """As many go as it needs, not more."""
    held = models({"a": 1, "b": 1, "c": 1, "big": 2}, 3)
    for name in ("a", "b", "c", "c", "b"):
        await ask(held, name)
    assert "2" == await ask(held, "big")
    assert {"big"} < held._cache.residents.keys()
    assert 2 == len(held._cache.residents)
    held.close()


async def test_whoever_goes_leaves_the_memory_that_runs_out() -> None:
    """Models on a GPU go for others there, not those on the processor; and the other way round."""
    entries = {name: document(name, 1) for name in ("a", "b", "c")}
    entries |= {name: document(name, 1, description="gpu") for name in ("x", "y", "z")}
    entries["large"] = document("large", 3, description="gpu")
    catalogue = Catalogue.model_validate({"models": entries})
    room = Capacity(threads=4, budget=Budget(host=2 * MIB, device=2 * MIB))
    held = Models(catalogue, "text", Path(), allow_fallback=True, capacity=room)
    _held.append(held)
    for name in ("x", "y", "a", "b", "c"):
        await ask(held, name)
    await until(lambda: Sized.closed == ["a"])
    assert Size(2 * MIB, 2 * MIB) == held.used
    await ask(held, "y")
    await ask(held, "z")
    await until(lambda: Sized.closed == ["a", "x"])
    assert {"b", "c", "y", "z"} == held._cache.residents.keys()
    with pytest.raises(ModelUnavailable, match="CLAWDBOT_MODEL_DEVICE_MEMORY_BYTES_MAX"):
        await ask(held, "large")
    assert {"b", "c", "y", "z"} == held._cache.residents.keys()
    held.close()


async def test_what_does_not_fit_is_refused_in_words() -> None:
    """First when it was measured, then before it is loaded; others are undisturbed."""
    held = models({"a": 1, "huge": 5}, 3)
    await ask(held, "a")
    for _ in range(2):
        with pytest.raises(ModelUnavailable, match=r"'huge' takes 5.0 MiB.*may take 3.0"):
            await ask(held, "huge")
    await until(lambda: held._cache.used.host == MIB)
    assert (["a", "huge"], ["huge"]) == (Sized.loads, Sized.closed)
    assert "1" == await ask(held, "a")
    held.close()


async def test_a_model_over_its_own_limit_is_refused() -> None:
    """In the worker's process too, where it can only be measured once it is loaded."""
    held = models({}, None)
    held.update({"a": spec("a", 4, isolation="none", limits={"memory": "2MiB"})})
    with pytest.raises(ModelUnavailable, match="it takes 4194304 bytes, its limit is 2097152"):
        await ask(held, "a")
    assert ["a"] == Sized.closed
    held.close()


async def test_many_who_ask_load_once_and_one_who_leaves_takes_no_lease_along() -> None:
    """The others are served."""
    held = models({"a": 1}, None)
    Sized.gates["a"] = threading.Event()
    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(ask(held, "a")) for _ in range(5)]
        await until(lambda: Sized.loads == ["a"])
        asked[0].cancel()
        await asyncio.sleep(0)
        Sized.gates["a"].set()
    assert ["1"] * 4 == [task.result() for task in asked[1:]]
    assert (["a"], 0) == (Sized.loads, held._cache.residents["a"].leases)
    held.close()


async def test_nobody_loses_a_model_while_computing_even_unwaited_for() -> None:
    """It gets no new work, and is unloaded when the thread is over; who waits is served then."""
    held = models({"a": 1, "b": 1}, 1)
    assert "1" == await ask(held, "b")
    Sized.gates["a!"] = threading.Event()
    async with asyncio.TaskGroup() as group:
        first = group.create_task(ask(held, "a"))
        await until(lambda: is_busy(held, "a"))
        first.cancel()
        second = group.create_task(ask(held, "b"))
        await asyncio.sleep(0.02)
        assert (["b"], ["b", "a"]) == (Sized.closed, Sized.loads)
        Sized.gates["a!"].set()
        assert "1" == await second
    assert (["b", "a"], ["b", "a", "b"]) == (Sized.closed, Sized.loads)
    held.close()


async def test_busy_models_cannot_keep_one_out_for_ever() -> None:
    """The model that is to go takes no more requests: its next one waits for room in turn."""
    held = models({"a": 1, "b": 1}, 1)
    await ask(held, "a")
    async with asyncio.TaskGroup() as group:
        stop = asyncio.Event()

        async def keep_busy() -> None:
            while not stop.is_set():
                await ask(held, "a")

        for _ in range(4):
            group.create_task(keep_busy())
        async with asyncio.timeout(5):
            for _ in range(10):
                assert "1" == await ask(held, "b")
        stop.set()
    held.close()


async def test_loads_at_the_same_time_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The third waits for one of the first two."""
    held = models(dict.fromkeys("abc", 1), None, loads_max=2)
    monkeypatch.setattr(held._loader, "_measuring", threading.Semaphore(10))
    Sized.gates = dict.fromkeys("abc", threading.Event())
    async with asyncio.TaskGroup() as group:
        for name in "abc":
            group.create_task(ask(held, name))
        await until(lambda: len(Sized.loads) == 2)
        await asyncio.sleep(0.02)
        assert {"a", "b"} == set(Sized.loads)
        Sized.gates["a"].set()
    assert ["a", "b", "c"] == sorted(Sized.loads)
    held.close()


async def test_the_next_model_is_loaded_while_the_one_before_computes() -> None:
    """So it does not wait for its load; and no model in use goes for one that is only foreseen."""
    held = models({"a": 1, "b": 1, "c": 1}, 2)
    await ask(held, "c")
    Sized.gates["a!"] = threading.Event()
    async with asyncio.TaskGroup() as group:
        first = group.create_task(ask(held, "a", then=["b"]))
        await until(lambda: held._cache.get("b") is not None)
        assert not first.done()
        Sized.gates["b!"] = threading.Event()
        answer = group.create_task(held.infer("b", Request({"text": "hi"}, then=["c"])))
        await asyncio.sleep(0.02)
        assert ["c", "a", "b"] == Sized.loads
        Sized.gates["b!"].set()
        Sized.gates["a!"].set()
    assert 1.0 > answer.result().load_ms
    held.close()


async def test_a_new_version_serves_whoever_comes_next() -> None:
    """Who computes finishes with the old one; entries appear and go."""
    held = models({"a": 1}, None)
    Sized.gates["a!"] = threading.Event()
    async with asyncio.TaskGroup() as group:
        old = group.create_task(ask(held, "a"))
        await until(lambda: is_busy(held, "a"))
        held.update({"a": spec("a2", 2), "b": spec("b", 3)})
        assert "2" == await ask(held, "a")
        assert not old.done()
        assert [] == Sized.closed
        Sized.gates["a!"].set()
    assert "1" == old.result()
    await until(lambda: Sized.closed == ["a"])
    assert "3" == await ask(held, "b")
    held.update({"b": None})
    with pytest.raises(ModelUnavailable, match="no worker of this pool knows the model 'b'"):
        await ask(held, "b")
    assert ["a"] == [offer.model for offer in held.offers()]
    with pytest.raises(InvalidArgument, match="no model named nobody"):
        held.update({"c": spec("c", fallback="nobody")})
    held.close()


async def test_an_entry_that_changes_while_it_loads_is_loaded_anew() -> None:
    """Nobody is served by what is no longer declared, or fails for it."""
    held = models({"a": 1}, None)
    Sized.gates["a"] = threading.Event()
    async with asyncio.TaskGroup() as group:
        asked = group.create_task(ask(held, "a"))
        await until(lambda: Sized.loads == ["a"])
        held.update({"a": spec("a2", 2)})
        Sized.gates["a"].set()
    assert ("2", ["a", "a2"], ["a"]) == (asked.result(), Sized.loads, Sized.closed)
    held.close()


async def test_it_is_warm_before_it_serves() -> None:
    """With what the entry declares, which must work."""
    held = models({}, None)
    held.update(
        {
            "a": spec("a", warm_up=[{"inputs": {"text": "warm"}}] * 2),
            "b": spec("b", warm_up=[{"inputs": {"text": "poison"}}]),
        }
    )
    await ask(held, "a")
    assert ["a", "a"] == Sized.warmed
    with pytest.raises(ModelUnavailable, match="its warm_up fails: it is poison"):
        await ask(held, "b")
    assert ["b"] == Sized.closed
    assert "its warm_up fails" in held.offers()[1].reason
    held.close()


async def test_what_it_did_is_counted() -> None:
    """Over loads and evictions; calls that failed are none."""
    held = models({"a": 1, "b": 1}, 1)
    for name in ("a", "b", "a"):
        await ask(held, name)
    with pytest.raises(EngineFailed):
        await ask(held, "a", "poison")
    found = held.counters("a")
    assert (2, {1}, 2, 1) == (
        found.execution_count,
        set(found.batches),
        found.load_count,
        found.eviction_count,
    )
    [(rows, (count, ns))] = held.calls()["a"].items()
    assert (1, 2) == (rows, count)
    assert ns > 0
    held.close()


async def test_whatever_happens_nobody_computes_with_what_is_gone() -> None:
    """Requests, cancellations, new versions and too little room, at random.

    Each answer is of a version that was declared, and in the end all is accounted for.
    """
    names = "abcdefgh"
    held, chance = models(dict.fromkeys(names, 1), 3, loads_max=2), random.Random(11)
    versions = {name: {"1"} for name in names}

    async def client() -> None:
        for _ in range(60):
            name = chance.choice(names)
            try:
                async with asyncio.timeout(chance.choice((0.0005, 5, 5))):
                    found = await ask(held, name, then=[chance.choice(names)])
            except TimeoutError:
                continue
            assert found in versions[name], (name, found)

    async def operator() -> None:
        for number in range(40):
            name, mib = chance.choice(names), chance.randint(1, 2)
            versions[name].add(str(mib))
            held.update({name: spec(f"{name}{number}", mib)})
            await asyncio.sleep(0.003)

    async with asyncio.TaskGroup() as group:
        group.create_task(operator())
        for _ in range(12):
            group.create_task(client())
    await until(lambda: not (held._cache._leaving or held._cache._wanted))
    residents = held._cache.residents.values()
    assert {0} == {loaded.leases for loaded in residents} | {0}
    assert held._cache.used.host == sum(loaded.size_bytes for loaded in residents) <= 3 * MIB
    assert len(Sized.loads) == len(Sized.closed) + len(residents)
    held.close()


async def test_a_hundred_models_in_the_memory_of_ten(tmp_path: Path) -> None:
    """Correct under churn, within the budget, and what is popular stays."""
    side, entries = 256, {}
    for number in range(100):
        tiny.save(tiny.scaling(number, side), tmp_path / f"m{number}.onnx")
        ports = ([tiny.port(name, "FP32", [-1, side])] for name in ("X", "Y"))
        entries[f"m{number}"] = tiny.entry(f"m{number}.onnx", *ports, max_batch_size=8)
    catalogue = Catalogue.model_validate({"models": entries})
    size = side * side * 4 + 1024
    room = Capacity(threads=2, budget=Budget(40 * size))
    held = Models(catalogue, "text", tmp_path, allow_fallback=True, capacity=room)
    chance, peak, answered = random.Random(7), 0, 0
    popular = [1 / (rank + 1) for rank in range(100)]
    row = Tensor(datatype="FP32", shape=(1, side), data=np.ones((1, side), np.float32).tobytes())

    async def client() -> None:
        nonlocal peak, answered
        for number in chance.choices(range(100), popular, k=40):
            answer = await held.infer(f"m{number}", Request({"x": row}))
            found = np.frombuffer(answer.outputs["y"].data, np.float32)
            assert (found == number * side).all(), number
            peak, answered = max(peak, held._cache.used.host), answered + 1

    async with asyncio.TaskGroup() as group:
        for _ in range(16):
            group.create_task(client())
    await until(lambda: not held._cache._leaving)
    loads = sum(held.counters(name).load_count for name in entries)
    assert 640 == answered
    assert peak <= 40 * size + 2 * max(item.size_bytes for item in held._cache.residents.values())
    assert held._cache.used.host <= 40 * size
    assert 60 < loads < 450
    assert all(not item.leases for item in held._cache.residents.values())
    held.close()
