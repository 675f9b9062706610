"""What must hold of every history, whatever was killed while it grew."""

from collections import Counter
from collections.abc import Sequence

from events.catalog import (
    Event,
    NodeCompleted,
    NodeScheduled,
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunRejected,
    RunStarted,
)


TERMINAL = (RunCompleted, RunFailed, RunRejected, RunCancelled)


def violations(events: Sequence[Event]) -> list[str]:
    """Return what is wrong with a history of a finished run; empty when nothing is."""
    found: list[str] = []
    starts = sum(isinstance(event, RunStarted) for event in events)
    ends = [position for position, event in enumerate(events) if isinstance(event, TERMINAL)]
    if starts != 1 or not isinstance(events[0], RunStarted):
        found.append(f"{starts} starts")
    if len(ends) != 1:
        found.append(f"{len(ends)} ends")
    elif ends[0] != len(events) - 1:
        found.append("events after the end")
    completed = Counter(event.node_id for event in events if isinstance(event, NodeCompleted))
    found += [f"{node}: {n} results" for node, n in completed.items() if n > 1]
    scheduled = Counter(
        (event.node_id, event.attempt) for event in events if isinstance(event, NodeScheduled)
    )
    found += [
        f"{node}/{attempt}: scheduled twice" for (node, attempt), n in scheduled.items() if n > 1
    ]
    first = events[0] if events else None
    if isinstance(first, RunStarted) and isinstance(events[-1], RunCompleted):
        missing = {node.id for node in first.plan.nodes} - set(completed)
        found += [f"{node}: no result" for node in sorted(missing)]
    return found
