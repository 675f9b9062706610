"""Which worker can run which model: each worker's own word, kept in the MODELS bucket."""

from dataclasses import dataclass

import orjson
from nats.js import JetStreamContext
from nats.js.errors import APIError
from pydantic import Field, ValidationError

from events.buckets import entries
from events.jetstream import BUS_ERRORS
from events.streams import MODELS
from schemas.errors import StoreUnavailable
from schemas.message import Message


FRESH_S = 30.0
"""A worker that has not spoken for this long is taken for gone."""


class Offer(Message):
    """One model as one worker has it."""

    model: str
    served_by: str
    """The model that really runs; another name where a fallback serves."""
    reason: str = ""
    """Why the model itself, or its fallback too, cannot run; empty when it can."""
    available: bool = True
    loaded: bool = False
    """Whether it is in memory now; what follows is measured and empty without."""
    devices: tuple[str, ...] = ()
    """What it really runs on, best first: the words of its library."""
    memory_bytes: int = 0
    device_bytes: int = 0
    """Of the memory of GPUs."""
    isolated: bool = False
    """Whether it has a process of its own."""
    latency_ms: dict[str, float] = Field(default_factory=dict)
    """Mean time of a call of the engine, by its number of rows; measured when it was loaded, then
    of the calls there were."""


class Device(Message):
    """A device besides the processor."""

    name: str
    model: str
    memory_bytes: int
    free_bytes: int


class Machine(Message):
    """What a worker may use, as the machine says."""

    cores: int
    memory_bytes: int
    devices: tuple[Device, ...] = ()


class WorkerCard(Message):
    """What one worker process offers."""

    worker: str
    modality: str
    offers: tuple[Offer, ...]
    engines: tuple[str, ...] = ()
    """Those that it has code for; empty of a worker from before it said so."""
    at: float
    machine: Machine | None = None
    held_bytes: int = 0
    """Memory of the worker's own process, measured."""
    models_bytes: int = 0
    """Of it and of its models' processes, what models take."""
    models_bytes_max: int | None = None
    models_device_bytes: int = 0
    """What models take of the memory of GPUs."""
    models_device_bytes_max: int | None = None


@dataclass(frozen=True)
class ModelDirectory:
    """Reads and writes the workers' cards."""

    js: JetStreamContext

    async def announce(self, card: WorkerCard) -> None:
        """Write a worker's card.

        Raises:
            StoreUnavailable: The bucket does not answer.
        """
        try:
            bucket = await self.js.key_value(MODELS)
            await bucket.put(card.worker, orjson.dumps(card.model_dump(mode="json")))
        except (APIError, *BUS_ERRORS) as error:
            raise StoreUnavailable("the models bucket does not answer") from error

    async def withdraw(self, worker: str) -> None:
        """Remove a worker's card.

        Raises:
            StoreUnavailable: The bucket does not answer.
        """
        try:
            bucket = await self.js.key_value(MODELS)
            await bucket.purge(worker)
        except (APIError, *BUS_ERRORS) as error:
            raise StoreUnavailable("the models bucket does not answer") from error

    async def cards(self, now: float) -> list[WorkerCard]:
        """Return the cards of the workers that spoke lately.

        Raises:
            StoreUnavailable: The bucket does not answer.
        """
        found: list[WorkerCard] = []
        for body in (await entries(self.js, MODELS)).values():
            try:
                card = WorkerCard.model_validate(orjson.loads(body))
            except (orjson.JSONDecodeError, ValidationError):
                continue  # of a worker that is newer than us
            if now - card.at <= FRESH_S:
                found.append(card)
        return sorted(found, key=lambda card: card.worker)
