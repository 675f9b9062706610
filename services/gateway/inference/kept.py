"""The tallies of workers as they were last heard, so that sums do not fall when a worker ends.

A worker tells its tally every few seconds and when it is stopped. What one that was killed had
counted after it last spoke is lost. All is forgotten when the gateway ends.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any


WORKERS_MAX = 1024
"""Workers whose tallies are kept apart; of the longest silent beyond, only the sum is kept."""


class Kept:
    """Keeps the newest tally of each worker."""

    def __init__(self) -> None:
        self._tallies: OrderedDict[str, Mapping[str, Any]] = OrderedDict()
        """By worker, the longest silent first."""
        self._gone: dict[str, Any] = {}
        """Of workers that nobody heard of for longest, by model."""

    def hear(self, tally: Mapping[str, Any]) -> None:
        """Take note of a tally, unless a newer one was heard."""
        worker, at = str(tally["worker"]), float(tally["at"])
        before = self._tallies.get(worker)
        if before is None or before["at"] <= at:
            self._tallies[worker] = {**tally, "at": at}
            self._tallies.move_to_end(worker)
        while len(self._tallies) > WORKERS_MAX:
            _, oldest = self._tallies.popitem(last=False)
            for name, counted in oldest["models"].items():
                self._gone[name] = added([self._gone.get(name, {}), counted])

    def of(self, model: str) -> list[Mapping[str, Any]]:
        """Return what each worker counted of a model, those that are gone too."""
        tallies = [*self._tallies.values(), {"models": self._gone}]
        return [item["models"][model] for item in tallies if model in item["models"]]


def added(tallies: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Add up what several workers counted of a model."""
    last = 0
    sums: dict[str, dict[str, Counter[str]]] = {"requests": {}, "responses": {}, "calls": {}}
    for tally in tallies:
        last = max(last, tally.get("last_inference", 0))
        for kind, found in sums.items():
            for key, duration in tally.get(kind, {}).items():
                found.setdefault(key, Counter()).update(duration)
    plain = {kind: {key: dict(item) for key, item in found.items()} for kind, found in sums.items()}
    return {"last_inference": last, **plain}
