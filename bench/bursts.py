"""Batches on arrivals in bursts: `python -m bench.bursts TRACE [SECONDS]`.

TRACE is a CSV file whose first column is the time of each request, such as those of Azure's LLM
inference traces (github.com/Azure/AzurePublicDataset, `data/AzureLLMInferenceTrace_code.csv`). Its
pauses are shortened by one factor, so that the mean rate is a share of what onnxruntime can do in
this process with batches of 32. The same arrivals are answered by the worker's own line, which
never waits, and by a batcher that waits up to 4 ms for 32 requests. JSON lines on stdout.
"""

import asyncio
import csv
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
import uvloop

from bench.inference import WIDTHS, floor, perceptron
from schemas.catalogue import ModelSpec
from schemas.values import Tensor
from services.workers.batches import Crew, Line
from services.workers.engine import Request
from services.workers.engines.onnx import OnnxEngine
from tests.support import onnx_models


MODEL = "wide"
SHARES = (0.3, 0.6, 0.9)
"""Mean rates, of the best in process."""
BATCH, DELAY_S = 32, 0.004

Answer = Callable[[Request], Awaitable[object]]


class Delayed:
    """A batcher that waits for company: up to `DELAY_S`, or until there are `BATCH` requests."""

    def __init__(self, engine: OnnxEngine, pool: ThreadPoolExecutor) -> None:
        self._engine = engine
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._waiting: list[tuple[Request, asyncio.Future[object]]] = []
        self._timer: asyncio.TimerHandle | None = None

    async def infer(self, request: Request) -> object:
        """Return what the engine gives for a request."""
        answer: asyncio.Future[object] = self._loop.create_future()
        self._waiting.append((request, answer))
        if len(self._waiting) == BATCH:
            self._send()
        elif self._timer is None:
            self._timer = self._loop.call_later(DELAY_S, self._send)
        return await answer

    def _send(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        batch, self._waiting = self._waiting, []
        job = self._loop.run_in_executor(
            self._pool, self._engine.infer, [request for request, _ in batch]
        )
        job.add_done_callback(lambda done: _hand_out(batch, done.result()))


def _hand_out(
    batch: Sequence[tuple[Request, "asyncio.Future[object]"]], outputs: Sequence[object]
) -> None:
    for (_, answer), found in zip(batch, outputs, strict=True):
        answer.set_result(found)


def pauses(trace: Path) -> list[float]:
    """Return the seconds between requests, each at most the longest of 99 in 100."""
    with trace.open(encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    times = sorted(datetime.fromisoformat(row[0][:26]).timestamp() for row in rows)
    found = [later - earlier for earlier, later in pairwise(times)]
    longest = statistics.quantiles(found, n=100)[98]
    return [min(pause, longest) for pause in found]


async def replay(gaps: Sequence[float], answer: Answer, request: Request) -> list[float]:
    """Send requests at their times; return how long each took, from when it should have begun."""
    loop, took = asyncio.get_running_loop(), list[float]()

    async def one(due: float) -> None:
        await answer(request)
        took.append(loop.time() - due)

    async with asyncio.TaskGroup() as group:
        due = loop.time()
        for gap in gaps:
            due += gap
            if due > loop.time():
                await asyncio.sleep(due - loop.time())
            group.create_task(one(due))
    return took


async def measure(engine: OnnxEngine, gaps: Sequence[float]) -> dict[str, dict[str, float]]:
    """Answer the same arrivals in both ways."""
    rows = np.random.default_rng(1).random((1, WIDTHS[MODEL][0]), np.float32)
    request = Request({"x": Tensor(datatype="FP32", shape=rows.shape, data=rows.tobytes())})
    found: dict[str, dict[str, float]] = {}
    with ThreadPoolExecutor(1) as pool:
        line = Line(MODEL, engine, Crew(pool.submit, 1), BATCH)
        for name, answer in (("line", line.infer), ("delay", Delayed(engine, pool).infer)):
            begun = time.perf_counter()
            took = await replay(gaps, answer, request)
            spent = time.perf_counter() - begun
            cuts = statistics.quantiles(took, n=100)
            found[name] = {
                "per_s": round(len(took) / spent, 1),
                "p50_ms": round(cuts[49] * 1000, 2),
                "p99_ms": round(cuts[98] * 1000, 2),
            }
    return found


def main() -> None:
    """Measure."""
    trace, seconds = Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 10.0  # noqa: PLR2004
    known = pauses(trace)
    with tempfile.TemporaryDirectory() as text:
        path, widths = Path(text) / f"{MODEL}.onnx", WIDTHS[MODEL]
        onnx_models.save(perceptron(widths), path)
        batch = {"X": np.zeros((BATCH, widths[0]), np.float32)}
        best = floor(path, batch, 2.0)
        ports = (
            [onnx_models.port(name, "FP32", [-1, width])]
            for name, width in (("X", widths[0]), ("Y", widths[-1]))
        )
        entry = onnx_models.entry(path.name, *ports, max_batch_size=BATCH)
        engine = OnnxEngine(ModelSpec.model_validate(entry), Path(text))
        engine.load()
        for share in SHARES:
            rate = best * share
            gaps = known[: round(rate * seconds)]
            factor = len(gaps) / rate / sum(gaps)
            found = uvloop.run(measure(engine, [gap * factor for gap in gaps]))
            for name, figures in found.items():
                line = {"model": MODEL, "mean_per_s": round(rate), "share": share, "batcher": name}
                print(json.dumps({**line, **figures}), flush=True)


if __name__ == "__main__":
    main()
