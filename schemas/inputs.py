"""What a run may bring: inputs that feed nodes, and inputs that only expressions name."""

from collections.abc import Iterable

from schemas.catalogue import Catalogue, Port
from schemas.expressions import parse
from schemas.plan import RUN, RUN_INPUT, TEMPLATE_ENGINE, Binding, Plan, PlanNode
from schemas.signatures import CONTENTS


WHOLE_INPUT = Binding(node=RUN_INPUT, output="")


def input_ports(plan: Plan, catalogue: Catalogue) -> dict[str, Port]:
    """Return the port that each run input feeds; inputs of templates have none."""
    found: dict[str, Port] = {}
    for feed in plan.feeds():
        spec = catalogue.models.get(feed.node.model)
        if spec is None or feed.node.model == TEMPLATE_ENGINE:
            continue
        ports = {port.name: port for port in spec.inputs}
        if feed.name in ports:
            port = ports[feed.name]
            if feed.node.bindings[feed.name].adapt is not None:  # a file, or what is made of it
                port = port.model_copy(update={"kind": CONTENTS[port.content].source})
            found.setdefault(feed.source, port)
    return found


def mentioned_inputs(plan: Plan, *, root: bool = True) -> set[str]:
    """Return the run inputs that a graph may use and that its bindings do not name.

    Args:
        plan: The graph.
        root: Whether its own `input` is the run's.

    Returns:
        Names; the empty one stands for any.
    """
    names = {RUN, RUN_INPUT} if root else {RUN}
    found: set[str] = set()
    for node in plan.nodes:
        for formula in _formulas(node):
            found |= _keys(formula, names)
        for formula in _written(node, "inner"):
            found |= _keys(formula, {RUN})
        found.update(item.output for item in node.bindings.values() if item.node == RUN)
        if root:
            takes_any = node.kind == "dynamic" or WHOLE_INPUT in node.bindings.values()
            found |= {""} if takes_any else set()
        if node.kind != "graph":  # a workflow of its own has a `run` of its own
            for body in node.bodies.values():
                found |= mentioned_inputs(body, root=root and node.kind == "try")
    return found


def _formulas(node: PlanNode) -> Iterable[str]:
    """Yield every expression that is evaluated where a node stands."""
    yield from (guard.when for guard in node.guards if guard.when)
    yield from (item.expression for item in node.bindings.values() if item.expression)
    yield from _written(node, "formulas")
    if node.gate is not None:
        yield node.gate.key


def _written(node: PlanNode, where: str) -> Iterable[str]:
    if node.kind != "model":
        for value in node.params.get(where, {}).values():
            yield from value.values() if isinstance(value, dict) else (value,)


def _keys(formula: str, names: set[str]) -> set[str]:
    expression = parse(formula)
    found = {key for name, key in expression.paths() if name in names}
    return found | {"" for name in names if expression.uses_whole(name)}
