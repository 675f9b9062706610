"""Tells workers which models will be wanted next, so that they are in memory by then.

A hint goes over core NATS to every worker of the pool that will be asked: whichever of them takes
the task has the model. It is no task: nobody answers it, and one that is lost costs a cold start.
"""

from collections import OrderedDict

from events.chains import ahead
from events.paths import node_id_of
from events.state import RunState
from events.subjects import RunKey, warm
from services.runtime import Clock, Outgoing


HINT_S = 2.0
"""Between two hints of the same node of a workflow."""
HINTED_MAX = 4096
"""Nodes whose last hint is remembered; the one that is longest ago is forgotten."""


class Hints:
    """Makes hints, now and then.

    Args:
        clock: Tells when a hint was made.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._told: OrderedDict[tuple[str, str, str], float] = OrderedDict()

    def of(self, key: RunKey, state: RunState, path: str) -> list[Outgoing]:
        """Return the hints for what comes after a node; none where they were made a moment ago."""
        node = (key.tenant, state.workflow, node_id_of(path))
        now = self._clock.now()
        if now - self._told.get(node, -HINT_S) < HINT_S:
            return []
        self._told[node] = now
        self._told.move_to_end(node)
        while len(self._told) > HINTED_MAX:
            self._told.popitem(last=False)
        return [
            Outgoing(
                warm(key.tenant, route.modality, route.pool, route.model), b"", {}, stored=False
            )
            for route in ahead(state, path)
        ]
