"""Models in a worker's memory: `python -m bench.cache`. JSON lines on stdout.

`churn`: a hundred models, room for ten, popularity by Zipf's law; beside it what an LRU and an
oracle would have done with the same requests. `apart`: what a process of its own costs a model.
`ahead`: three cold models one after the other, with and without loading ahead.
"""

import asyncio
import json
import os
import random
import statistics
import tempfile
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from schemas.catalogue import Catalogue, ModelSpec
from schemas.values import Tensor
from services.telemetry import configure
from services.workers.engine import Engine, Request
from services.workers.engines.onnx import OnnxEngine
from services.workers.isolation import Isolated
from services.workers.memory import MIB, Budget, give_back, held_bytes
from services.workers.models import Capacity, Models
from tests.support import onnx_models as tiny


MODELS, ROOM, CLIENTS, REQUESTS = 100, 10, 8, 4000
SIDES = (256, 1024)
"""Of square weights: every fifth model has sixteen times as many."""
COLD_MS = 0.1
"""A request that waited longer waited for its model."""
SIZES = (256, 64 * 1024, MIB, 5 * MIB)


def say(**facts: Any) -> None:
    """Print one line."""
    print(json.dumps(facts), flush=True)


def fleet(folder: Path) -> dict[str, dict[str, Any]]:
    """Write the models, and return their catalogue entries."""
    entries = {}
    for number in range(MODELS):
        side = SIDES[number % 5 == 0]
        tiny.save(tiny.scaling(number, side), folder / f"m{number}.onnx")
        ports = ([tiny.port(name, "FP32", [-1, side])] for name in "XY")
        entries[f"m{number}"] = tiny.entry(f"m{number}.onnx", *ports, max_batch_size=8)
    return entries


def lru(trace: Sequence[str], sizes: Mapping[str, int], bytes_max: int) -> Iterator[str]:
    """Yield the requests that do not find their model where the least recently used goes."""
    kept: OrderedDict[str, int] = OrderedDict()
    for name in trace:
        if name not in kept:
            yield name
        kept[name] = sizes[name]
        kept.move_to_end(name)
        while sum(kept.values()) > bytes_max:
            kept.popitem(last=False)


def oracle(trace: Sequence[str], sizes: Mapping[str, int], bytes_max: int) -> Iterator[str]:
    """Yield them where that model goes which is wanted again last."""
    later: dict[str, list[int]] = {}
    for at, name in reversed(list(enumerate(trace))):
        later.setdefault(name, []).append(at)
    kept: set[str] = set()
    for name in trace:
        later[name].pop()
        if name not in kept:
            yield name
        kept.add(name)
        while sum(sizes[item] for item in kept) > bytes_max:
            kept.remove(max(kept, key=lambda item: later[item][-1] if later[item] else len(trace)))


def models(folder: Path, entries: Mapping[str, Any], bytes_max: int | None) -> Models:
    """Return the models of a worker with so much room."""
    catalogue = Catalogue.model_validate({"models": entries})
    room = Capacity(threads=2, budget=Budget(bytes_max))
    return Models(catalogue, "text", folder, allow_fallback=True, capacity=room)


async def ask(held: Models, name: str) -> float:
    """Ask a model, check its answer, return how long it waited to be loaded, milliseconds."""
    number, side = int(name[1:]), SIDES[int(name[1:]) % 5 == 0]
    row = Tensor(datatype="FP32", shape=(1, side), data=np.ones(side, np.float32).tobytes())
    answer = await held.infer(name, Request({"x": row}))
    assert (np.frombuffer(answer.outputs["y"].data, np.float32) == number * side).all(), name
    return answer.load_ms


async def alone(
    folder: Path, entries: Mapping[str, Any]
) -> tuple[dict[str, int], dict[str, float]]:
    """Return what each model takes, bytes, and how long it loads, seconds."""
    held = models(folder, entries, None)
    for name in entries:
        await ask(held, name)
    sizes = {name: offer.memory_bytes for name, offer in zip(entries, held.offers(), strict=True)}
    costs = {name: held.counters(name).load_s for name in entries}
    held.close()
    give_back()
    return sizes, costs


async def churn(folder: Path) -> None:
    """Ask a hundred models in the room of ten."""
    entries = fleet(folder)
    sizes, costs = await alone(folder, entries)
    bytes_max = round(ROOM * statistics.mean(sizes.values()))
    held, chance = models(folder, entries, bytes_max), random.Random(0)
    names = list(entries)
    chance.shuffle(names)
    trace = chance.choices(names, [1 / (rank + 1) for rank in range(MODELS)], k=REQUESTS)
    before, begun, waits = held_bytes(), time.perf_counter(), list[float]()
    waiting = iter(trace)

    async def client() -> None:
        for name in waiting:
            waits.append(await ask(held, name))

    async with asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(client())
    took_s = time.perf_counter() - begun
    cold = [wait for wait in waits if wait > COLD_MS]
    say(
        scenario="churn",
        models=MODELS,
        budget_mib=round(bytes_max / MIB, 1),
        all_mib=round(sum(sizes.values()) / MIB, 1),
        requests=REQUESTS,
        correct=len(waits),
        waited_for_a_load=round(len(cold) / REQUESTS, 3),
        cold_start_p50_ms=round(statistics.median(cold), 1),
        requests_per_s=round(REQUESTS / took_s),
        grew_mib=round((held_bytes() - before) / MIB, 1),
    )
    for policy, misses in {
        "ours": [name for name in entries for _ in range(held.counters(name).load_count)],
        "lru": list(lru(trace, sizes, bytes_max)),
        "oracle": list(oracle(trace, sizes, bytes_max)),
    }.items():
        rate = 1 - len(misses) / REQUESTS
        loading_s = sum(costs[name] for name in misses)
        say(policy=policy, hit_rate=round(rate, 3), loading_s=round(loading_s, 2))
    held.close()


def apart(folder: Path) -> None:
    """Compute the same in the worker and in a process of its own."""
    tiny.save(tiny.identity("FP32", ("n", "m")), folder / "same.onnx")
    x, y = (tiny.port(name, "FP32", [-1, -1]) for name in "XY")
    spec = ModelSpec.model_validate(tiny.entry("same.onnx", [x], [y]))
    for size in SIZES:
        tensor = Tensor(datatype="FP32", shape=(1, size // 4), data=os.urandom(size))
        facts: dict[str, Any] = {}
        for where, engine in (
            ("together", OnnxEngine(spec, folder)),
            ("apart", Isolated(OnnxEngine(spec, folder))),
        ):
            facts |= measured(where, engine, Request({"x": tensor}))
        say(scenario="apart", bytes_each_way=size, **facts)


def measured(where: str, engine: Engine, request: Request) -> dict[str, Any]:
    """Return start and median of an engine."""
    begun, took = time.perf_counter(), list[float]()
    engine.load()
    start_s = time.perf_counter() - begun
    for _ in range(500):
        begun = time.perf_counter()
        engine.infer([request])
        took.append(time.perf_counter() - begun)
    memory = engine.memory()
    engine.close()
    facts: dict[str, float] = {f"{where}_p50_us": round(statistics.median(took) * 1e6)}
    if memory is not None:
        facts |= {"start_s": round(start_s, 2), "process_mib": round(memory / MIB)}
    return facts


async def ahead(folder: Path) -> None:
    """Run three cold models after one another; each computes for about as long as one loads."""
    entries = {}
    for number in range(3):
        tiny.save(tiny.restless(), folder / f"r{number}.onnx")
        ports = [tiny.port("ROUNDS", "INT64", [1]), tiny.port("SIZE", "INT64", [1])]
        done = [tiny.port("DONE", "FP32", [1])]
        entries[f"r{number}"] = tiny.entry(f"r{number}.onnx", ports, done, isolation="process")

    def one(value: int) -> Tensor:
        return Tensor(datatype="INT64", shape=(1,), data=value.to_bytes(8, "little"))

    for is_ahead in (False, True):
        held = models(folder, entries, None)
        begun, waited = time.perf_counter(), list[float]()
        for number, name in enumerate(entries):
            then = [f"r{number + 1}"] if is_ahead and number + 1 < len(entries) else []
            inputs = {"rounds": one(1_000_000), "size": one(1)}
            answer = await held.infer(name, Request(inputs, then=then))
            waited.append(round(answer.load_ms))
        took_ms = round((time.perf_counter() - begun) * 1000)
        say(scenario="ahead", ahead=is_ahead, load_ms=waited, all_ms=took_ms)
        held.close()


def main() -> None:
    """Measure."""
    configure("bench", "json")
    import structlog  # noqa: PLC0415 - only to be quiet

    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        uvloop.run(churn(folder))
        apart(folder)
        uvloop.run(ahead(folder))


if __name__ == "__main__":
    main()
