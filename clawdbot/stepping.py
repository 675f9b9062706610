"""Walking through a run's events, with breakpoints."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from typing_extensions import override

from clawdbot.results import Run
from events.catalog import EVENT_TYPES
from events.subjects import RunKey
from events.tape import Recorded, run_view
from schemas.errors import InvalidArgument


_ITERATION = re.compile(r"\[[^\]]*\]")


@dataclass(frozen=True)
class Breakpoint:
    """Where to stop: after an event of a node, or of a type."""

    kind: Literal["node", "event"]
    value: str

    @classmethod
    def of(cls, text: str) -> "Breakpoint":
        """Read `node=PATH` or `event=TYPE`.

        Raises:
            InvalidArgument: Neither, or no such type of event.
        """
        kind, _, value = text.partition("=")
        if kind == "node" and value:
            return cls("node", value)
        if kind == "event" and value in EVENT_TYPES:
            return cls("event", value)
        if kind == "event":
            known = ", ".join(EVENT_TYPES)
            raise InvalidArgument(f"no event '{value}'; there are: {known}", field="break")
        raise InvalidArgument(f"'{text}' is neither node=PATH nor event=TYPE", field="break")

    def hits(self, record: Recorded) -> bool:
        """Tell whether to stop after an event; `each/ocr` stands for every iteration's."""
        if self.kind == "event":
            return record.type == self.value
        path = getattr(record.event, "node_id", "") or getattr(record.event, "scope", "")
        return self.value in {path, _ITERATION.sub("", path)}

    @override
    def __str__(self) -> str:
        return f"{self.kind}={self.value}"


@dataclass
class Stepper:
    """A run and how far it was walked through."""

    key: RunKey
    records: Sequence[Recorded]
    breakpoints: list[Breakpoint] = field(default_factory=list)
    position: int = 0
    """Events that have happened."""

    @property
    def over(self) -> bool:
        """Whether all has happened."""
        return self.position >= len(self.records)

    @property
    def last(self) -> Recorded | None:
        """The event that happened last."""
        return self.records[self.position - 1] if self.position else None

    def step(self, count: int = 1) -> Sequence[Recorded]:
        """Go on by some events; return them."""
        return self._to(self.position + count)

    def back(self, count: int = 1) -> None:
        """Go back by some events, at most to the first."""
        self.position = max(min(1, self.position), self.position - count)

    def resume(self) -> Sequence[Recorded]:
        """Go on to the next breakpoint, or to the end; return what happened."""
        for offset, record in enumerate(self.records[self.position :], 1):
            if any(point.hits(record) for point in self.breakpoints):
                return self.step(offset)
        return self._to(len(self.records))

    def view(self) -> Run:
        """Return the run as it is now.

        Raises:
            NotFound: Nothing has happened yet.
        """
        view = run_view(self.key, self.records[: self.position])
        return Run.model_validate(view.model_dump())

    def _to(self, position: int) -> Sequence[Recorded]:
        before, self.position = self.position, min(max(0, position), len(self.records))
        return self.records[before : self.position]
