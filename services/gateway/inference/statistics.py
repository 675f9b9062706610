"""The statistics of models: the tallies of all workers, added up.

Every worker counts what it computes and says so where `nats micro stats` looks as well. A gateway
asks all of them at once, so each gateway gives the same answer for the whole mesh, and what came
over NATS or as a node of a workflow is in it; and what workers had counted that ended since.

Source: ADR-32 of NATS, the verb STATS; Triton's statistics extension.
"""

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from events.models import ModelDirectory, WorkerCard
from schemas.catalogue import ModelSpec
from schemas.inference_management import (
    BatchStatistics,
    InferStatistics,
    MemoryUsage,
    ModelStatistics,
    ResponseStatistics,
    StatisticDuration,
)
from schemas.repository import split
from services.gateway.inference.kept import Kept, added
from services.requests import Requests
from services.runtime import Clock
from services.telemetry import get_logger


log = get_logger()


class Heard(Protocol):
    """A message of core NATS."""

    subject: str
    data: bytes


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
    kept: Kept = field(default_factory=Kept)

    async def hear(self, message: Heard) -> None:
        """Take note of what a worker counted until now."""
        try:
            tally = orjson.loads(message.data)
            for counted in tally["models"].values():
                summed("", "", [counted])
            self.kept.hear(tally)
        except (AttributeError, KeyError, TypeError, ValueError):  # of somebody else
            log.warning("tally_unreadable", subject=message.subject)

    async def of(self, models: Mapping[str, ModelSpec]) -> tuple[ModelStatistics, ...]:
        """Return the statistics of models, in their order.

        Raises:
            BusUnavailable, StoreUnavailable: The bus does not answer.
        """
        cards = await self.directory.cards(self.clock.now())
        async with asyncio.TaskGroup() as group:
            for modality in sorted({spec.modality for spec in models.values()}):
                workers = {card.worker for card in cards if card.modality == modality}
                group.create_task(self._ask(modality, workers))
        return tuple(
            summed(split(name)[0], spec.version, self.kept.of(name)).model_copy(
                update={"memory_usage": memory_of(name, cards)}
            )
            for name, spec in models.items()
        )

    async def _ask(self, modality: str, workers: set[str]) -> None:
        """Hear the tallies of a modality's workers, as they are now."""
        subject = f"$SRV.STATS.clawdbot-worker-{modality}"
        async with aclosing(self.requests.gather(subject, self.wait_s)) as answers:
            async for answer in answers:
                tallies = [item.get("data") for item in orjson.loads(answer)["endpoints"]]
                for tally in filter(None, tallies):
                    self.kept.hear(tally)
                    workers.discard(tally["worker"])
                if not workers:
                    return


def memory_of(name: str, cards: Iterable[WorkerCard]) -> tuple[MemoryUsage, ...]:
    """Return what a model takes in all workers together, by the kind of memory."""
    offers = [offer for card in cards for offer in card.offers]
    own = [offer for offer in offers if offer.loaded and name == offer.model == offer.served_by]
    taken = {
        "CPU": sum(offer.memory_bytes for offer in own),
        "GPU": sum(offer.device_bytes for offer in own),
    }
    return tuple(MemoryUsage(type=kind, byte_size=size) for kind, size in taken.items() if size > 0)


def summed(name: str, version: str, tallies: Iterable[Mapping[str, Any]]) -> ModelStatistics:
    """Add up what each worker says of a model."""
    total = added(tallies)
    calls = {int(rows): StatisticDuration(**item) for rows, item in total["calls"].items()}
    phases = {phase: StatisticDuration(**item) for phase, item in total["requests"].items()}
    return ModelStatistics(
        name=name,
        version=version,
        last_inference=total["last_inference"],
        inference_count=sum(rows * item.count for rows, item in calls.items()),
        execution_count=sum(item.count for item in calls.values()),
        inference_stats=InferStatistics(**phases),
        response_stats=_responses(total["responses"]),
        batch_stats=tuple(
            BatchStatistics(batch_size=rows, compute_infer=item)
            for rows, item in sorted(calls.items())
        ),
    )


def _responses(sums: Mapping[str, Mapping[str, int]]) -> dict[str, ResponseStatistics]:
    """Return the figures of responses by their index, which is a text."""
    found: dict[int, dict[str, StatisticDuration]] = {}
    for key, item in sums.items():
        index, _, figure = key.partition(".")
        found.setdefault(int(index), {})[figure] = StatisticDuration(**item)
    return {str(index): ResponseStatistics(**item) for index, item in sorted(found.items())}
