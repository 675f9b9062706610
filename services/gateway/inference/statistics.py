"""The statistics of models: the tallies of all workers, added up.

Every worker counts what it computes and says so where `nats micro stats` looks as well. A gateway
asks all of them at once, so each gateway gives the same answer for the whole mesh, and what came
over NATS or as a node of a workflow is in it.

Source: ADR-32 of NATS, the verb STATS; Triton's statistics extension.
"""

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import orjson

from events.models import ModelDirectory
from schemas.catalogue import ModelSpec
from schemas.inference_management import (
    BatchStatistics,
    InferStatistics,
    ModelStatistics,
    StatisticDuration,
)
from schemas.repository import split
from services.requests import Requests
from services.runtime import Clock


@dataclass(frozen=True)
class Tallies:
    """Asks the workers what they computed.

    Args:
        requests: The way to them.
        directory: Which workers there are.
        clock: Tells which of them spoke lately.
        wait_s: How long to wait for one that does not answer.
    """

    requests: Requests
    directory: ModelDirectory
    clock: Clock
    wait_s: float

    async def of(self, models: Mapping[str, ModelSpec]) -> tuple[ModelStatistics, ...]:
        """Return the statistics of models, in their order.

        Raises:
            BusUnavailable, StoreUnavailable: The bus does not answer.
        """
        cards = await self.directory.cards(self.clock.now())
        found: list[Mapping[str, Any]] = []
        async with asyncio.TaskGroup() as group:
            for modality in sorted({spec.modality for spec in models.values()}):
                workers = {card.worker for card in cards if card.modality == modality}
                group.create_task(self._ask(modality, workers, found))
        return tuple(
            summed(split(name)[0], spec.version, [tally["models"].get(name, {}) for tally in found])
            for name, spec in models.items()
        )

    async def _ask(self, modality: str, workers: set[str], found: list[Mapping[str, Any]]) -> None:
        """Add the tallies of a modality's workers."""
        subject = f"$SRV.STATS.clawdbot-worker-{modality}"
        async with aclosing(self.requests.gather(subject, self.wait_s)) as answers:
            async for answer in answers:
                tallies = [item.get("data") for item in orjson.loads(answer)["endpoints"]]
                for tally in filter(None, tallies):
                    found.append(tally)
                    workers.discard(tally["worker"])
                if not workers:
                    return


def summed(name: str, version: str, tallies: Iterable[Mapping[str, Any]]) -> ModelStatistics:
    """Add up what each worker says of a model."""
    last, phases, calls = 0, Counter[tuple[str, str]](), Counter[tuple[int, str]]()
    for tally in tallies:
        last = max(last, tally.get("last_inference", 0))
        for phase, duration in tally.get("requests", {}).items():
            phases.update({(phase, key): value for key, value in duration.items()})
        for rows, duration in tally.get("calls", {}).items():
            calls.update({(int(rows), key): value for key, value in duration.items()})
    sizes = sorted({rows for rows, _ in calls})
    return ModelStatistics(
        name=name,
        version=version,
        last_inference=last,
        inference_count=sum(rows * calls[rows, "count"] for rows in sizes),
        execution_count=sum(calls[rows, "count"] for rows in sizes),
        inference_stats=InferStatistics(
            **{
                phase: StatisticDuration(count=phases[phase, "count"], ns=phases[phase, "ns"])
                for phase in sorted({phase for phase, _ in phases})
            }
        ),
        batch_stats=tuple(
            BatchStatistics(
                batch_size=rows,
                compute_infer=StatisticDuration(count=calls[rows, "count"], ns=calls[rows, "ns"]),
            )
            for rows in sizes
        ),
    )
