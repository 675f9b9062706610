"""An answer of a workflow that grows with what its sinks say; the log has the last word.

A client that puts parts together cannot take one back. So only parts without a gap are handed on,
of the first attempt; and what a run gave in the end must begin with them.
"""

from collections.abc import Iterable, Mapping

from schemas.api import NodePart
from schemas.catalogue import ModelSpec
from schemas.errors import Unavailable
from schemas.values import Value


class Growing:
    """Puts the texts of sinks together.

    Args:
        spec: The workflow as a model; its outputs are `sink.output`.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self._ports = {port.tensor_name: port.name for port in spec.outputs if port.kind == "text"}
        self._said: dict[str, str] = {}
        """By port, what was handed on."""
        self._next: dict[str, int] = {}
        """By node, the part that comes next; 0 after a gap."""

    def add(self, parts: Iterable[NodePart]) -> dict[str, Value]:
        """Return what is new in the outputs, by port; empty if nothing is."""
        fresh: dict[str, str] = {}
        for part in parts:
            if part.attempt != 1 or part.part != self._next.get(part.node, 1):
                self._next[part.node] = 0
                continue
            self._next[part.node] = part.part + 1
            for output, text in part.outputs.items():
                port = self._ports.get(f"{part.node}.{output}")
                if port is not None and isinstance(text, str):
                    fresh[port] = fresh.get(port, "") + text
        for port, text in fresh.items():
            self._said[port] = self._said.get(port, "") + text
        return dict(fresh)

    def rest(self, outputs: Mapping[str, Value], run_id: str) -> dict[str, Value]:
        """Return what is missing at the end.

        Raises:
            Unavailable: What was handed on is not how it ended: a part was lost, or the node was
                tried again.
        """
        rest = dict(outputs)
        for port, said in self._said.items():
            whole = outputs.get(port)
            if not isinstance(whole, str) or not whole.startswith(said):
                text = f"the parts are not how it ended; run {run_id} has the whole"
                raise Unavailable(text, run_id=run_id)
            rest[port] = whole[len(said) :]
            if whole == said:
                del rest[port]
        return rest
