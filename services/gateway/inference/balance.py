"""Which of several workers an inference goes to: the one that will answer soonest, as far as known.

NATS hands the requests of a queue group out at random, so a slow worker gets as many as a fast one.
Here two workers are drawn and the better one gets the request, by what this gateway saw itself: how
many of its own it has there, and how long they lately took. That a slow worker became quick again
is found out because what is known of it fades.

Source: Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing" (2001); weighted by
pace as in Finagle.
"""

import asyncio
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from events.models import ModelDirectory
from schemas.errors import ClawdbotError, DeadlineExceeded
from services.runtime import Clock
from services.telemetry import get_logger


log = get_logger()

REFRESH_S = 2.0
"""How often it is asked which workers there are, while inferences come."""
FADE_S = 10.0
"""After so long what is known of a worker's pace weighs a third."""
UNKNOWN_S = 1e-5
"""The pace of one that nobody asked yet: it is asked soon."""
SLOWER_WEIGHT, QUICKER_WEIGHT = 0.3, 0.1
"""Of the newest answer in the pace: what became slow is noticed sooner."""


@dataclass
class Worker:
    """What this gateway saw of one worker and one of its models."""

    name: str
    now: Callable[[], float] = time.perf_counter
    in_flight: int = 0
    pace_s: float = 0.0
    """How long an answer lately took, for each request that was under way with it."""
    noted: float = -math.inf

    def cost(self) -> float:
        """Return how long one more request would take, about."""
        faded = self.pace_s * math.exp((self.noted - self.now()) / FADE_S)
        return (self.in_flight + 1) * max(faded, UNKNOWN_S)

    @contextmanager
    def asked(self) -> Iterator[None]:
        """Take note of a request and how long it took; of an error only when it is late."""
        begun, beside = self.now(), self.in_flight + 1
        self.in_flight += 1
        try:
            yield
        except DeadlineExceeded:
            self._note((self.now() - begun) / beside)
            raise
        else:
            self._note((self.now() - begun) / beside)
        finally:
            self.in_flight -= 1

    def _note(self, took_s: float) -> None:
        past_s = self.pace_s or took_s
        weight = SLOWER_WEIGHT if took_s > past_s else QUICKER_WEIGHT
        self.pace_s = past_s + (took_s - past_s) * weight
        self.noted = self.now()


class Balance:
    """Chooses among the workers that have a model.

    Args:
        directory: Which there are.
        clock: Tells which of them spoke lately.
        chance: Draws two of them.
        wanted: Whether to choose at all; else NATS does, at random.
    """

    def __init__(
        self, directory: ModelDirectory, clock: Clock, chance: random.Random, *, wanted: bool
    ) -> None:
        self._directory = directory
        self._clock = clock
        self._chance = chance
        self._wanted = wanted
        self._workers: dict[str, list[Worker]] = {}
        self._asked = asyncio.Event()

    def choose(self, model: str) -> Worker | None:
        """Return the worker to ask; None where there is no choice, or nothing known of it."""
        self._asked.set()
        known = self._workers.get(model, ())
        if not self._wanted or len(known) < 2:  # noqa: PLR2004 - a choice is of two
            return None
        return min(self._chance.sample(known, 2), key=Worker.cost)

    def other(self, model: str, than: Worker) -> Worker | None:
        """Return the best of the other workers; None where there is none."""
        others = [item for item in self._workers.get(model, ()) if item.name != than.name]
        return min(others, key=Worker.cost, default=None)

    def gone(self, worker: Worker) -> None:
        """Forget a worker that does not answer any more."""
        for workers in self._workers.values():
            workers[:] = [item for item in workers if item.name != worker.name]

    async def watch(self) -> None:
        """Look who is there, again and again while somebody asks."""
        while self._wanted:
            await self._asked.wait()
            self._asked.clear()
            try:
                cards = await self._directory.cards(self._clock.now())
            except ClawdbotError as error:
                log.info("workers_unknown", error=error.message)
            else:
                found: dict[str, list[str]] = {}
                for card in cards:
                    for offer in card.offers:
                        if offer.available:
                            found.setdefault(offer.model, []).append(card.worker)
                self.learn(found)
            await asyncio.sleep(REFRESH_S)

    def learn(self, found: Mapping[str, Sequence[str]]) -> None:
        """Take the workers of each model for those that are there; known ones stay known."""
        past = self._workers
        self._workers = {
            model: [_known(past.get(model, ()), name) for name in names]
            for model, names in found.items()
        }


def _known(workers: Sequence[Worker], name: str) -> Worker:
    return next((item for item in workers if item.name == name), None) or Worker(name)
