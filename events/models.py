"""Which worker can run which model: each worker's own word, kept in the MODELS bucket."""

from dataclasses import dataclass

import orjson
from nats.js import JetStreamContext
from nats.js.errors import APIError
from pydantic import ValidationError

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


class WorkerCard(Message):
    """What one worker process offers."""

    worker: str
    modality: str
    offers: tuple[Offer, ...]
    engines: tuple[str, ...] = ()
    """Those that it has code for; empty of a worker from before it said so."""
    at: float


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
