"""Weighted fair queueing of submissions: who had more than its share, and who is to be let past.

In two levels: tenants share by their weights, the workflows of a tenant by their priority. Nothing
here reads or writes; `services.orchestrator.backlog` does.
"""

import heapq
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from events.subjects import DEFAULT_LANE, tenant_and_name


LANE_WEIGHTS = {"high": 4.0, "normal": 1.0, "low": 0.25}
"""Of the workflows of one tenant, by priority."""


@dataclass
class Level:
    """Those who share something, and how much each had of it: start-time fair queueing.

    Source: P. Goyal, H. Vin, H. Cheng, Start-time Fair Queueing, SIGCOMM 1996.
    """

    weight: Callable[[str], float]
    had: dict[str, float] = field(default_factory=dict)
    """Of those who wait, divided by their weights."""
    floor: float = 0.0
    """Where whoever comes begins: where the one is who had least. Never falls."""
    known: Collection[str] = ()
    """Who waited before: of those who were never looked at, all have waited since the beginning."""

    def waiting(self, names: Collection[str]) -> None:
        """Take note of all who wait now: others are forgotten, newcomers begin at the floor."""
        least = min((self.had[name] for name in self.known if name in names), default=0.0)
        self.floor = max(self.floor, least)
        self.had = {name: self.had.get(name, self.floor) for name in names}
        self.known = [*self.had]

    def began(self, name: str, count: int) -> None:
        """Count what somebody got."""
        self.had[name] = self.had.get(name, self.floor) + count / self.weight(name)

    def behind(self, head: Collection[str], slack: float, most: int) -> list[tuple[str, int]]:
        """Return who had less than those at the head of the queue, and how much is due to each.

        Args:
            head: Who is at the head of the queue.
            slack: So much less that it matters.
            most: Most names to return; who had least comes first.
        """
        front = max(self.had.get(name, self.floor) for name in head)
        least = heapq.nsmallest(most, self.had.items(), key=lambda item: item[1])
        lags = ((name, (front - had) * self.weight(name)) for name, had in least)
        return [(name, math.ceil(lag)) for name, lag in lags if lag > slack * self.weight(name)]


class Turns:
    """Tenants and their workflows, by what began since the queue is long.

    Args:
        weights: Of tenants; 1 for one that is not named.
        slack: Submissions of weight 1 that somebody may be ahead of others.
    """

    def __init__(self, weights: Mapping[str, float], slack: int) -> None:
        self._slack = slack
        self._tenants = Level(lambda tenant: weights.get(tenant, 1.0))
        self._workflows: dict[str, Level] = {}
        self._counts: Mapping[str, int] = {}
        self._lanes: dict[str, str] = {}

    def unknown(self, subjects: Collection[str]) -> list[str]:
        """Return the subjects whose priority was not said yet."""
        return [subject for subject in subjects if subject not in self._lanes]

    def has_lane(self, subject: str, lane: str) -> None:
        """Take note of a workflow's priority; until then it is `normal`."""
        self._lanes[subject] = lane

    def waiting(self, counts: Mapping[str, int]) -> None:
        """Take note of how many messages wait, by subject; one may hold several submissions."""
        self._counts = counts
        self._lanes = {name: lane for name, lane in self._lanes.items() if name in counts}
        by_tenant: dict[str, list[str]] = {}
        for subject in counts:
            by_tenant.setdefault(tenant_and_name(subject)[0], []).append(subject)
        self._tenants.waiting(by_tenant)
        self._workflows = {tenant: self._level(tenant) for tenant in by_tenant}
        for tenant, subjects in by_tenant.items():
            self._workflows[tenant].waiting(subjects)

    def began(self, subject: str, count: int = 1) -> None:
        """Count submissions that were taken up."""
        tenant, _ = tenant_and_name(subject)
        self._tenants.began(tenant, count)
        self._workflows.setdefault(tenant, self._level(tenant)).began(subject, count)

    def behind(self, head: Collection[str], most: int) -> list[tuple[str, int]]:
        """Return the subjects to let past those at the head of the queue, and what is due to each.

        Args:
            head: Subjects of what was at the head lately; not empty.
            most: Most subjects to return.
        """
        of_head: dict[str, set[str]] = {}
        for subject in head:
            of_head.setdefault(tenant_and_name(subject)[0], set()).add(subject)
        found: dict[str, int] = {}
        for tenant, due in self._tenants.behind(of_head, self._slack, most):
            level = self._workflows[tenant].had
            self._add(found, min(level, key=level.__getitem__), due)
        for tenant, subjects in of_head.items():  # and inside of those that are served anyway
            level_of_head = self._workflows.get(tenant)
            if level_of_head is not None:
                for subject, due in level_of_head.behind(subjects, self._slack, most):
                    self._add(found, subject, due)
        return list(found.items())[:most]

    def _add(self, found: dict[str, int], subject: str, due: int) -> None:
        if self._counts.get(subject) and subject not in found:
            found[subject] = due

    def _level(self, tenant: str) -> Level:
        known = self._workflows.get(tenant)
        return known or Level(lambda name: LANE_WEIGHTS[self._lanes.get(name, DEFAULT_LANE)])
