"""What comes back, with the values in it turned into what they stand for."""

from typing import Any

from schemas.api import RunView
from schemas.errors import NotFound
from schemas.values import Value, from_json, from_wire


class Run(RunView):
    """A run, as `Client` returns it."""

    @property
    def over(self) -> bool:
        """Whether nothing can follow."""
        return self.status not in {"accepted", "running", "paused"}

    def output(self, path: str) -> Value:
        """Return one output of a node: `run.output("asr.text")`.

        Returns:
            JSON, or a `Binary`, `BlobRef` or `Tensor`; `Client.fetch` gets the bytes of any.

        Raises:
            NotFound: No such node, or it has not given this output.
        """
        node_id, _, name = path.partition(".")
        for node in self.nodes:
            if node.id == node_id and node.outputs is not None and name in node.outputs:
                return value_of(node.outputs[name])
        have = [f"{node.id}.{key}" for node in self.nodes for key in node.outputs or {}]
        raise NotFound(f"no output '{path}'; there are: {', '.join(have) or 'none'}", field=path)

    def single_output(self) -> Value:
        """Return the run's only output.

        Raises:
            NotFound: There are none, or several.
        """
        found = [value for outputs in (self.outputs or {}).values() for value in outputs.values()]
        if len(found) != 1:
            raise NotFound(f"the run has {len(found)} outputs; name the one you want")
        return value_of(found[0])


def value_of(document: Any) -> Value:
    """Return the value behind its JSON form."""
    return from_wire(from_json({"value": document})["value"])
