"""Parts of what a step of a run gives, said while it grows, and kept by nobody.

The log has the whole, once, in `NodeCompleted` (ADR-0045).
"""

import asyncio
from collections.abc import Callable, Mapping

from events.subjects import RunKey, chunk
from schemas.api import NodePart
from schemas.messages import Task
from schemas.values import Value, to_json, to_wire


CHUNKS_MAX = 1024
"""Parts of one attempt that wait to be said; more are left out, and their numbers show it."""
Emit = Callable[[Mapping[str, Value]], None]


class Chunks:
    """Says parts.

    Args:
        say: Publishes bytes on a subject, on the loop; what nobody can hear is lost.
    """

    def __init__(self, say: Callable[[str, bytes], None]) -> None:
        self._say = say

    def of(self, task: Task) -> Emit:
        """Return what takes the parts of an attempt, in order, from any thread."""
        loop, key = asyncio.get_running_loop(), RunKey(task.tenant, task.run_id)
        subject = chunk(key, task.node_id)
        number = handed = said = 0  # the last one is the loop's, the others the engine's

        def emit(outputs: Mapping[str, Value]) -> None:
            nonlocal number, handed
            number += 1
            if handed - said < CHUNKS_MAX:
                handed += 1
                loop.call_soon_threadsafe(say, number, outputs)

        def say(number: int, outputs: Mapping[str, Value]) -> None:
            nonlocal said
            said += 1
            wire = to_json({name: to_wire(value) for name, value in outputs.items()})
            part = NodePart(node=task.node_id, attempt=task.attempt, part=number, outputs=wire)
            self._say(subject, part.model_dump_json().encode())

        return emit
