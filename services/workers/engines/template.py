"""Fills in a logic-less template from what the nodes upstream gave (ADR-0008).

A template sees

- `input`: the run's own inputs, `{{input.name}}`;
- every node upstream by its id, `{{nlu.intent}}`;
- as a shorthand, every output name by itself, `{{intent}}`. Where several nodes have an output
  of that name, the one that comes last in topological order wins, so the nearest one; the run's
  inputs come before all nodes. A node id always wins over a shorthand.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar

from typing_extensions import override

from schemas import mustache
from schemas.errors import InvalidArgument
from schemas.values import Value
from services.workers.engine import Engine, Request


PARSED_MAX = 256


class TemplateEngine(Engine):
    """Renders `params.template` over the outputs of the nodes upstream."""

    blocking: ClassVar[bool] = False

    @override
    def infer(self, batch: Sequence[Request]) -> list[Mapping[str, Value]]:
        return [{"text": _fill(request)} for request in batch]


def _fill(request: Request) -> str:
    template = request.params.get("template")
    if not isinstance(template, str):
        raise InvalidArgument("a template node needs a template", field="params.template")
    return _parsed(template).render(scope(request.inputs))


@lru_cache(maxsize=PARSED_MAX)
def _parsed(template: str) -> mustache.Template:
    return mustache.parse(template)


def scope(inputs: Mapping[str, Value]) -> dict[str, Any]:
    """Return the names a template may use: nodes by id, and their outputs by name.

    Args:
        inputs: Outputs by node id in topological order, `input` holding the run's inputs.
    """
    names: dict[str, Any] = {}
    ordered = sorted(inputs, key=lambda node_id: node_id != "input")
    for node_id in ordered:
        outputs = inputs[node_id]
        if isinstance(outputs, Mapping):
            names.update(outputs)
    return {**names, **inputs}
