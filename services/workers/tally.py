"""What this process has computed, by model: the numbers behind the statistics of the mesh.

Counted where the work is done, because only a worker knows how long a request waited and how large
its batch was. A gateway adds up the tallies of all workers when somebody asks.

Source: Triton's statistics extension of the Open Inference Protocol.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from services.runtime import Clock
from services.workers.engine import Request
from services.workers.growth import Growth
from services.workers.models import Answer
from services.workers.unlogged import Send


@dataclass
class Duration:
    """How often something was done, and how long it took altogether."""

    count: int = 0
    ns: int = 0

    def add(self, ns: float) -> None:
        """Count one more."""
        self.count += 1
        if ns > 0:
            self.ns += round(ns)

    def document(self) -> dict[str, int]:
        """Return it as the protocol has it."""
        return {"count": self.count, "ns": self.ns}


PHASES = (
    "success",
    "fail",
    "queue",
    "compute_input",
    "compute_infer",
    "compute_output",
    "cache_hit",
    "cache_miss",
)


@dataclass
class _Figures:
    """Those of one model."""

    last_inference_ms: int = 0
    requests: dict[str, Duration] = field(
        default_factory=lambda: {phase: Duration() for phase in PHASES}
    )
    responses: dict[str, Duration] = field(default_factory=dict)
    """By index and figure: `0.success`; only those that there were."""


class Tally:
    """Counts the requests of each model.

    Args:
        worker: This process's name.
        clock: Tells when a model was last asked.
    """

    def __init__(self, worker: str, clock: Clock) -> None:
        self._worker = worker
        self._clock = clock
        self._figures: dict[str, _Figures] = {}
        self.in_flight = 0
        """Requests under way, waiting ones among them."""

    def inference(self, model: str) -> "Counted":
        """Return the count of one request; as a context it takes note of the end."""
        return Counted(self, model)

    def note(self, model: str, phases: Mapping[str, float]) -> None:
        """Add nanoseconds to phases of a model."""
        figures = self._figures.get(model)
        if figures is None:
            figures = self._figures[model] = _Figures()
        figures.last_inference_ms = round(self._clock.now() * 1000)
        for phase, ns in phases.items():
            figures.requests[phase].add(ns)

    def note_responses(
        self, model: str, responses: Iterable[tuple[int, Mapping[str, float]]]
    ) -> None:
        """Add nanoseconds to figures of responses, by their index, of a model that was counted."""
        found = self._figures[model].responses
        for index, figures in responses:
            for figure, ns in figures.items():
                found.setdefault(f"{index}.{figure}", Duration()).add(ns)

    def document(self, calls: Mapping[str, Mapping[int, tuple[int, int]]]) -> dict[str, Any]:
        """Return all numbers, for `nats micro stats` and the gateways.

        Args:
            calls: By model and rows, how many calls of its engine there were, and their
                nanoseconds.
        """
        models: dict[str, Any] = {}
        for name in sorted(self._figures.keys() | calls.keys()):
            figures = self._figures.get(name, _Figures())
            models[name] = {
                "last_inference": figures.last_inference_ms,
                "requests": {key: item.document() for key, item in figures.requests.items()},
                "responses": {key: item.document() for key, item in figures.responses.items()},
                "calls": {
                    str(rows): {"count": count, "ns": ns}
                    for rows, (count, ns) in sorted(calls.get(name, {}).items())
                },
            }
        at = self._clock.now()
        return {"worker": self._worker, "at": at, "in_flight": self.in_flight, "models": models}


class Counted:
    """One request under way.

    Args:
        tally: Takes the numbers.
        model: What is asked for.
    """

    def __init__(self, tally: Tally, model: str) -> None:
        self._tally = tally
        self._model = model
        self._begun = self._fetched = self._answered = 0
        self._answer: Answer | None = None
        self._growth: Growth | None = None
        self._grows = False

    def __enter__(self) -> Self:
        """Begin."""
        self._tally.in_flight += 1
        self._begun = time.perf_counter_ns()
        return self

    def fetched(self) -> None:
        """Take note that the inputs are here."""
        self._fetched = time.perf_counter_ns()

    def watched(self, request: Request, *, grows: bool) -> Request:
        """Return the request to compute, whose responses are counted where there may be several.

        Args:
            request: What is asked.
            grows: Whether the model may.
        """
        self._grows = grows
        if grows and self._growth is None:
            self._growth = Growth()
        return request if self._growth is None else self._growth.watched(request)

    def sending(self, send: Send) -> Send:
        """Return what sends parts of the answer, and is counted."""
        self._growth = Growth()
        return self._growth.sending(send)

    def answered(self, answer: Answer) -> None:
        """Take note of what the model gave, and which one it was."""
        self._answered, self._answer = time.perf_counter_ns(), answer

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Count it: an error, a cancellation too, is a failure."""
        self._tally.in_flight -= 1
        over = time.perf_counter_ns()
        answer = self._answer
        if error is not None or answer is None:
            self._tally.note(self._model, {"fail": over - self._begun})
            if self._growth is not None and self._grows:
                grown = self._growth.failed(error, self._fetched, over)
                self._tally.note_responses(self._model, grown)
            return
        phases: dict[str, float] = {"success": over - self._begun}
        if answer.remembered:
            phases["cache_hit"] = over - self._begun
        else:
            phases |= {
                "queue": (answer.wait_ms + answer.load_ms) * 1e6,
                "compute_input": self._fetched - self._begun,
                "compute_infer": answer.compute_ms * 1e6,
                "compute_output": over - self._answered,
            }
        if answer.remembered is False:
            phases["cache_miss"] = 0
        self._tally.note(answer.model, phases)
        if self._growth is not None and self._grows and not answer.remembered:
            begun = self._fetched + (answer.wait_ms + answer.load_ms) * 1e6
            grown = self._growth.answered(answer.outputs, begun, self._answered, over)
            self._tally.note_responses(answer.model, grown)
