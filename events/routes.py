"""Choosing among several ways to do a node, from how they are doing. Pure."""

from collections.abc import Mapping

from events.catalog import Figures, RouteChosen
from schemas.plan import PlanNode


EJECT_TIMES = 3.0
"""A way that is this many times slower than the fastest is left alone."""
EJECT_ANSWERS_MIN = 5
"""Answers before a way's latency says anything."""
EJECT_FLOOR_MS = 50.0
"""Latency that is never a reason to leave a way alone."""

Health = Mapping[str, Figures]
"""By route name; a way that is not there has not been tried."""


def choose(node: PlanNode, health: Health, tried: tuple[int, ...] = ()) -> RouteChosen | None:
    """Return the way to do a node; None when there is only one.

    Ways whose circuit is open, that are outliers in latency, or that were tried before come last;
    a half-open one is probed. Among the rest the order counts, or the latency where the node says
    so; a way without figures counts as fast, so that it gets some.

    Args:
        node: The node.
        health: How the ways are doing.
        tried: Indexes of ways that earlier attempts took.
    """
    if not node.alternatives:
        return None
    routes = node.routes
    figures = tuple(health.get(route.name) or Figures(route=route.name) for route in routes)
    slow = _outliers(figures)

    def rank(index: int) -> tuple[bool, bool, bool, float, int]:
        own = figures[index]
        pace = own.latency_ms if node.fastest else 0.0
        return (own.state == "open", index in tried, index in slow, pace, index)

    index = min(range(len(routes)), key=rank)
    return RouteChosen(
        index=index, reason=_reason(index, node, figures, slow, tried), figures=figures
    )


def _outliers(figures: tuple[Figures, ...]) -> set[int]:
    """Return the ways that are far slower than the fastest one that is well."""
    known = [
        item.latency_ms
        for item in figures
        if item.answers >= EJECT_ANSWERS_MIN and item.state == "closed"
    ]
    if not known:
        return set()
    limit_ms = max(EJECT_FLOOR_MS, EJECT_TIMES * min(known))
    return {
        index
        for index, item in enumerate(figures)
        if item.answers >= EJECT_ANSWERS_MIN and item.latency_ms > limit_ms
    }


def _reason(
    index: int,
    node: PlanNode,
    figures: tuple[Figures, ...],
    slow: set[int],
    tried: tuple[int, ...],
) -> str:
    if figures[index].state == "half_open":
        return "a probe: whether it is well again"
    if index == 0 and not node.fastest:
        return "first in order"
    passed = []
    for other, item in enumerate(figures[:index]):
        if item.state == "open":
            passed.append(f"{item.route} fails ({item.error_rate:.0%})")
        elif other in tried:
            passed.append(f"{item.route} was tried")
        elif other in slow:
            passed.append(f"{item.route} is slow ({item.latency_ms:.0f} ms)")
    if passed:
        return "; ".join(passed)
    return "the fastest" if node.fastest else "all before it are worse"
