"""What a node sees: values by name for expressions and inputs. Pure."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from events.paths import ROOT, node_path, outwards, owner_of
from events.state import RunState
from schemas.errors import InvalidArgument
from schemas.expressions import parse
from schemas.messages import Following
from schemas.plan import RUN, RUN_INPUT, Binding, PlanNode
from schemas.values import Wire


def evaluate(state: RunState, scope: str, formula: str, inputs: Wire | None = None) -> Any:
    """Return the value of an expression as the nodes of a scope see it.

    Args:
        state: The run.
        scope: Where the expression stands.
        formula: The expression.
        inputs: What `input` stands for, if not the scope's inputs.

    Raises:
        InvalidArgument: It cannot be computed.
    """
    expression = parse(formula)
    values = {name: look_up(state, scope, name) for name in expression.names}
    if inputs is not None and RUN_INPUT in values:
        values[RUN_INPUT] = inputs
    return expression.evaluate(values)


def look_up(state: RunState, scope: str, name: str) -> Any:
    """Return what a name stands for in a scope: inputs, or a node's outputs; None if skipped."""
    if name == RUN_INPUT:
        return state.inputs_of(scope)
    for around in outwards(scope):
        if name == RUN and (around == ROOT or _is_workflow(state, around)):
            return state.inputs_of(around)
        if name in state.plan_of(around).by_id:
            node = state.nodes_of(around).get(name)
            return None if node is None or node.status != "completed" else node.outputs
    raise InvalidArgument(f"there is no '{name}' here")


def node_inputs(state: RunState, scope: str, node: PlanNode) -> Wire:
    """Return the inputs of a node whose sources are decided; what is not there is left out.

    Raises:
        InvalidArgument: An input's expression cannot be computed.
    """
    return bound_inputs(node.bindings, lambda name: look_up(state, scope, name))


def bound_inputs(bindings: Mapping[str, Binding], look: Callable[[str], Any]) -> Wire:
    """Return the inputs that bindings give; what is not there is left out.

    Args:
        bindings: By input.
        look: Gives what a name stands for: an object, or None.

    Raises:
        InvalidArgument: An input's expression cannot be computed.
    """
    inputs: Wire = {}
    for name, binding in bindings.items():
        found, value = _bound(binding, look)
        if found:
            inputs[name] = value
    return inputs


def missing_inputs(node: PlanNode | Following, inputs: Wire) -> Sequence[str]:
    """Return the names of the inputs a node needs and does not have."""
    return [
        name
        for name, binding in node.bindings.items()
        if name not in inputs
        and name not in node.optional
        and binding.output
        and binding.node != RUN_INPUT
    ]


def _bound(binding: Binding, look: Callable[[str], Any]) -> tuple[bool, Any]:
    if binding.expression:
        expression = parse(binding.expression)
        return True, expression.evaluate({name: look(name) for name in expression.names})
    source = look(binding.node)
    if not binding.output:
        return source is not None, source
    if isinstance(source, dict) and binding.output in source:
        return True, source[binding.output]
    for other in binding.otherwise:
        found, value = _bound(other, look)
        if found:
            return True, value
    return False, None


def _is_workflow(state: RunState, scope: str) -> bool:
    owner, label = owner_of(scope)
    return label == "body" and state.planned(owner).kind == "graph"


def path_of(scope: str, node: PlanNode) -> str:
    """Return the path of a planned node in a scope."""
    return node_path(scope, node.id)
