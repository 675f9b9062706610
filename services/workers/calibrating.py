"""Measures how long calls of each size take, before anybody waits for the model.

A model that was warmed computes its warm-up request again, alone, then in calls of 2, 4 and more
rows. So a worker's card has measured latencies from the beginning, and the line before the engine
knows how many rows pay without trying it on those who wait.
"""

import time
from collections.abc import Iterator, Sequence

from schemas.errors import ClawdbotError
from services.telemetry import get_logger
from services.workers.curve import TRIES
from services.workers.engine import BatchEngine, Engine, Request


WARM_S_MAX = 5.0
"""A model whose warm-up took longer is not measured at load."""
log = get_logger()


def calibrate(
    engine: Engine, requests: Sequence[Request], sizes: Sequence[int], budget_s: float
) -> Iterator[tuple[int, float]]:
    """Yield the rows of calls of an engine, and how long they took, seconds.

    For each size there is one call to get used to it, then those that count. One call of the
    smallest size is made in any case; none is begun that would not be over in time, as far as the
    one before tells. What a model refuses ends it.

    Args:
        engine: Loaded and warmed.
        requests: What it was warmed with; the first that can be batched is used.
        sizes: Rows, ascending.
        budget_s: How long all of it may take.
    """
    if not requests:
        return
    request, rows, is_batched = _sample(engine, requests)
    until, row_s = time.perf_counter() + budget_s, 0.0
    for size in sizes if is_batched else (1,):
        count = size // rows
        if not count:
            continue
        for attempt in range(1 + TRIES):
            begun = time.perf_counter()
            if row_s and begun + row_s * count * rows > until:
                return
            try:
                engine.infer([request] * count)
            except ClawdbotError as error:
                log.info("calibration_ended", engine=engine.spec.engine, error=error.message)
                return
            took_s = time.perf_counter() - begun
            row_s = took_s / (count * rows)
            if attempt or begun + 2 * took_s > until:  # the first one plans memory
                yield count * rows, took_s


def _sample(engine: Engine, requests: Sequence[Request]) -> tuple[Request, int, bool]:
    """Return a request to measure with, its rows, and whether one call may have several."""
    if isinstance(engine, BatchEngine):
        for request in requests:
            if engine.batch_key(request) is not None:
                return request, max(1, engine.rows(request)), True
    return requests[0], 1, False
