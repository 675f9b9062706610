"""What a worker may go on with by itself, once it has done a node. Pure.

Asking the orchestrator between two quick nodes of the same pool costs more than the nodes. A task
therefore names what would follow in any case; the worker goes on while that is quick, and hands in
all results as one. The log shows the same events as if it had asked each time.
"""

from collections.abc import Iterator

from events.paths import node_id_of, node_path, scope_of
from events.state import DECIDED, RunState
from events.view import look_up
from schemas.expressions import parse
from schemas.messages import Following
from schemas.plan import HTTP_MODEL, RUN, RUN_INPUT, Binding, PlanNode, Route
from schemas.values import Wire


FOLLOWING_MAX = 8
"""Nodes that a worker goes on with after one task."""
AHEAD_MAX = 8
"""Models that workers are told of while one node is done."""
_AFTERWARDS = frozenset({"catch", "finally", "compensate"})
"""Graphs of a node that do not begin with it."""


def following(state: RunState, path: str) -> tuple[tuple[Following, ...], Wire]:
    """Return the nodes that a worker may go on with, and what they need besides its own results.

    Args:
        state: The run.
        path: The node whose task it is.
    """
    scope, node_id = scope_of(path), node_id_of(path)
    plan, nodes = state.plan_of(scope), state.nodes_of(scope)
    first = before = plan.node(node_id)
    chain: list[Following] = []
    done: set[str] = {node_id}
    seen: Wire = {}
    while len(chain) < FOLLOWING_MAX:
        node = plan.followers.get(before.id)
        if node is None or node.id in nodes or not _goes_with(first, node):
            break
        needed = {name for binding in node.bindings.values() for name in _names(binding)} - done
        if not all(_is_settled(state, scope, name) for name in needed):
            break
        seen |= {name: look_up(state, scope, name) for name in sorted(needed)}
        chain.append(
            Following(
                node_id=node_path(scope, node.id),
                model=node.model,
                params=node.params,
                bindings=node.bindings,
                optional=node.optional,
                timeout_s=node.timeout_s,
            )
        )
        done.add(node.id)
        before = node
    return tuple(chain), seen


def ahead(state: RunState, path: str) -> tuple[Route, ...]:
    """Return whose workers will be asked to run which models next, if all goes well.

    Those are the nodes after this one, and after those that its worker goes on with; a condition
    may still decide otherwise. What its worker goes on with is not among them: it knows.

    Args:
        state: The run.
        path: The node that begins.
    """
    scope = scope_of(path)
    plan, nodes = state.plan_of(scope), state.nodes_of(scope)
    chain = [node_id_of(item.node_id) for item in following(state, path)[0]]
    here = {plan.node(node_id).model for node_id in (node_id_of(path), *chain)}
    found: dict[tuple[str, str, str], Route] = {}
    for before in (node_id_of(path), *chain):
        for node in plan.waiting.get(before, ()):
            if node.id in nodes or node.id in chain:
                continue
            for first in _first(node):
                if first.model not in here and first.model != HTTP_MODEL:
                    route = first.routes[0]
                    found[route.modality, route.pool, route.model] = route
    return tuple(found.values())[:AHEAD_MAX]


def _first(node: PlanNode) -> Iterator[PlanNode]:
    """Yield what workers are asked for when a node begins: itself, or what is first inside it."""
    if node.kind == "model":
        yield node
        return
    for label, body in node.bodies.items():
        for inner in body.nodes if label not in _AFTERWARDS else ():
            if not inner.sources:
                yield from _first(inner)


def _goes_with(first: PlanNode, node: PlanNode) -> bool:
    """Tell whether a node runs where another one does, and touches nothing outside."""
    same = (node.modality, node.pool, node.lane) == (first.modality, first.pool, first.lane)
    plain = not (node.guards or node.alternatives or node.memo_s or node.gate)
    return same and plain and node.kind == "model" and node.model != HTTP_MODEL


def _names(binding: Binding) -> Iterator[str]:
    if binding.expression:
        yield from parse(binding.expression).names
    else:
        yield binding.node
        for other in binding.otherwise:
            yield from _names(other)


def _is_settled(state: RunState, scope: str, name: str) -> bool:
    """Tell whether what a name stands for can no longer change."""
    if name in {RUN, RUN_INPUT}:
        return True
    node = state.nodes_of(scope).get(name)
    return node is not None and node.status in DECIDED
