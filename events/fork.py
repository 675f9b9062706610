"""What a fork keeps of the run it comes from, and what it runs anew. Pure.

A node is run anew when it, or anything upstream of it, is not what it was: its plan differs, it
uses an input that differs, it was undone, or it was not over. Control nodes are kept whole or run
anew whole; there is no keeping of some iterations.
"""

from collections.abc import Iterator, Sequence

from events.catalog import Event, NodeCompleted, NodeKept, NodeSkipped, ScopeOpened, SignalReceived
from events.evolve import fold
from events.paths import ROOT, owner_of, scope_of
from events.state import RunState
from schemas import mustache
from schemas.inputs import mentioned_inputs
from schemas.plan import RUN, RUN_INPUT, TEMPLATE_ENGINE, Plan, PlanNode
from schemas.values import Wire


Kept = NodeKept | NodeSkipped | SignalReceived


def kept(
    run_id: str, events: Sequence[Event], plan: Plan, inputs: Wire, at: float
) -> tuple[Kept, ...]:
    """Return what a fork takes over.

    Args:
        run_id: The run it comes from.
        events: Of that run, up to where the fork begins.
        plan: Of the fork.
        inputs: Of the fork.
        at: When the fork begins, seconds since the epoch.
    """
    state = fold(events)
    assert state is not None
    anew = run_anew(state, plan, inputs) | _undone(events)
    anew = _downstream(plan, anew)
    said = {
        event.node_id: (ordinal, event)
        for ordinal, event in enumerate(events, 1)
        if isinstance(event, NodeCompleted | NodeKept | NodeSkipped)
    }
    found: list[Kept] = []
    for node in plan.nodes:
        known = state.nodes.get(node.id)
        if known is None or node.id in anew or node.id not in said:
            continue
        ordinal, event = said[node.id]
        if known.status == "skipped" and isinstance(event, NodeSkipped):
            found.append(event.model_copy(update={"at": at}))
        elif known.status == "completed" and isinstance(event, NodeCompleted):
            found.append(_cite(run_id, ordinal, event, known.outputs or {}, at))
        elif known.status == "completed" and isinstance(event, NodeKept):
            found.append(event.model_copy(update={"at": at}))
    return (*found, *_untaken(state, events, at))


def _untaken(state: RunState, events: Sequence[Event], at: float) -> Iterator[SignalReceived]:
    """Yield the signals that wait for a node; one that a node took is not used twice."""
    received = [event for event in events if isinstance(event, SignalReceived)]
    for signal in state.signals:
        for event in reversed(received):
            if (event.name, event.payload) == (signal.name, signal.payload):
                received.remove(event)
                yield event.model_copy(update={"at": at})
                break


def run_anew(state: RunState, plan: Plan, inputs: Wire) -> set[str]:
    """Return the nodes of a plan that are not what they were in a run, and all downstream."""
    differ = {
        name
        for name in {*state.inputs, *inputs}
        if state.inputs.get(name) != inputs.get(name) or (name in inputs) != (name in state.inputs)
    }
    changed = {
        node.id
        for node in plan.nodes
        if state.plan.by_id.get(node.id) != node or _uses(node, differ)
    }
    return _downstream(plan, changed)


def _downstream(plan: Plan, changed: set[str]) -> set[str]:
    """Return nodes and all that hang on them; a plan is in topological order."""
    found = set(changed)
    for node in plan.nodes:
        if found.intersection(node.sources):
            found.add(node.id)
    return found


def _uses(node: PlanNode, inputs: set[str]) -> bool:
    """Tell whether a node, or a graph inside it, may use one of some inputs of the run."""
    if not inputs:
        return False
    alone = Plan(nodes=(_without_contexts(node),), outputs=())
    used = {feed.source for feed in alone.feeds()} | mentioned_inputs(alone)
    if "" in used or used & inputs:
        return True
    return any(_fills_in(text, inputs) for text in _templates(node))


def _without_contexts(node: PlanNode) -> PlanNode:
    """Return a node whose templates do not count as using every input; their texts tell."""
    bindings = node.bindings
    if node.model == TEMPLATE_ENGINE:
        bindings = {name: item for name, item in bindings.items() if item.output}
    bodies = {
        label: body.model_copy(update={"nodes": tuple(map(_without_contexts, body.nodes))})
        for label, body in node.bodies.items()
    }
    return node.model_copy(update={"bindings": bindings, "bodies": bodies})


def _templates(node: PlanNode) -> Iterator[str]:
    if node.model == TEMPLATE_ENGINE:
        yield str(node.params.get("template", ""))
    for body in node.bodies.values():
        for inner in body.nodes:
            yield from _templates(inner)


def _fills_in(template: str, inputs: set[str]) -> bool:
    """Tell whether a template may print one of some inputs: by name, or as a part of all."""
    for path in mustache.parse(template).paths():
        if not path or path[0] in inputs:
            return True
        if path[0] in {RUN_INPUT, RUN} and (len(path) == 1 or path[1] in inputs):
            return True
    return False


def _undone(events: Sequence[Event]) -> set[str]:
    """Return the nodes whose compensation has begun: what they gave holds no more."""
    owners = [
        owner_of(event.scope)
        for event in events
        if isinstance(event, ScopeOpened) and event.cleanup_of is not None
    ]
    return {path for path, label in owners if label == "compensate" and scope_of(path) == ROOT}


def _cite(run_id: str, ordinal: int, event: NodeCompleted, outputs: Wire, at: float) -> NodeKept:
    return NodeKept(
        at=at,
        node_id=event.node_id,
        run_id=run_id,
        event=ordinal,
        attempt=event.attempt,
        outputs=outputs,
        model=event.model,
        worker=event.worker,
        timings=event.timings,
    )
