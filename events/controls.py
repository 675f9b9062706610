"""How control nodes begin and go on. Everything is recorded, so a fold never computes anything."""

from typing import TYPE_CHECKING, Any

from events.catalog import NodeOpened, ScopeClosed
from events.paths import owner_of, scope_of, scope_path
from events.state import NodeState, Progress, RunState
from events.view import evaluate
from schemas.errors import FailedPrecondition, InvalidArgument
from schemas.messages import Fault
from schemas.plan import PlanNode
from schemas.values import Wire
from schemas.workflow import WAIT_S_MAX


if TYPE_CHECKING:
    from events.turn import Turn


ITERATION_INDEX = "index"


def truth(state: RunState, scope: str, formula: str, inputs: Wire | None = None) -> bool:
    """Return whether an expression is true.

    Raises:
        InvalidArgument: It cannot be computed.
    """
    return bool(evaluate(state, scope, formula, inputs))


def begin(turn: "Turn", path: str, node: PlanNode, inputs: Wire) -> None:
    """Begin a control node.

    Raises:
        InvalidArgument: One of its expressions cannot be computed.
    """
    match node.kind:
        case "set" | "switch":
            turn.complete(path, _computed(turn.state, scope_of(path), node), by=node.kind)
        case "delay":
            turn.schedule(path, node, 1, timeout_s=_delay_s(turn, path, node))
        case "signal":
            _wait_for_signal(turn, path, node)
        case "loop" | "foreach" | "try" | "graph":
            _open(turn, path, node)
            if node.kind in {"try", "graph"}:
                turn.open(scope_path(path, "body"), _body_inputs(turn.state, path, node, inputs))
            else:
                turn.proceed(path)
        case _:
            raise AssertionError(f"{node.kind} nodes are dispatched")


def proceed(turn: "Turn", path: str) -> None:
    """Take a control node further after one of its scopes closed, or a turn was over."""
    node = turn.state.node(path)
    if node is None or node.status != "open" or node.progress is None:
        return
    planned = turn.state.planned(path)
    try:
        match planned.kind:
            case "loop":
                _next_iteration(turn, path, planned, node.progress)
            case "foreach":
                _next_items(turn, path, planned, node.progress)
            case "try":
                _next_phase(turn, path, planned, node.progress)
            case _:
                _settle(turn, path, planned, node.progress)
    except (InvalidArgument, FailedPrecondition) as error:
        turn.fail(path, Fault.of(error))


def closing(state: RunState, scope: str, at: float) -> ScopeClosed:
    """Return how a scope closes all of whose nodes are decided.

    Raises:
        InvalidArgument: An expression over its nodes cannot be computed.
    """
    owner, _ = owner_of(scope)
    inner = state.planned(owner).params.get("inner", {})
    collected: Wire | None = None
    if "collect" in inner:
        collected = {"value": evaluate(state, scope, inner["collect"])}
    variables = {
        name: evaluate(state, scope, formula) for name, formula in inner.get("next", {}).items()
    }
    last = "until" in inner and truth(state, scope, inner["until"])
    return ScopeClosed(
        at=at,
        scope=scope,
        status="completed",
        variables=variables,
        collected=collected,
        last=last,
    )


def expire(turn: "Turn", path: str, planned: PlanNode) -> None:
    """End the wait of a delay or a signal whose time has come."""
    if planned.kind == "delay":
        turn.complete(path, {}, by=planned.kind)
    elif "default" in planned.params:
        outputs = {"payload": planned.params["default"], "timed_out": True}
        turn.complete(path, outputs, by=planned.kind)
    else:
        name = planned.params["name"]
        turn.fail(path, Fault(code="DEADLINE_EXCEEDED", message=f"no signal '{name}' came in time"))


def deliver(turn: "Turn", name: str) -> None:
    """Hand the oldest signal of a name to a node that waits for it."""
    signal = next((signal for signal in turn.state.signals if signal.name == name), None)
    for path, node in turn.state.active():
        if signal is None or node.status != "scheduled":
            continue
        planned = turn.state.planned(path)
        if planned.kind == "signal" and planned.params["name"] == name:
            outputs = {"payload": signal.payload, "timed_out": False}
            turn.complete(path, outputs, by=planned.kind)
            return


def expand(turn: "Turn", path: str, node: NodeState, plan: Any) -> None:
    """Run the graph that a dynamic node was given."""
    planned = turn.state.planned(path)
    _open(turn, path, planned, attempt=node.attempt, plan=plan)
    inputs = turn.state.inputs_of(scope_of(path))
    turn.open(scope_path(path, "body"), inputs)


def _computed(state: RunState, scope: str, node: PlanNode) -> Wire:
    formulas = node.params["formulas"]
    if node.kind == "set":
        return {
            name: evaluate(state, scope, formula) for name, formula in formulas["values"].items()
        }
    if "on" in formulas:
        case = evaluate(state, scope, formulas["on"])
        return {"case": case if isinstance(case, str) else node.params["default"]}
    for name, formula in formulas["cases"].items():
        if truth(state, scope, formula):
            return {"case": name}
    return {"case": node.params["default"]}


def _delay_s(turn: "Turn", path: str, node: PlanNode) -> float:
    formulas = node.params.get("formulas", {})
    if "until" in formulas:
        seconds = evaluate(turn.state, scope_of(path), formulas["until"])
    elif "seconds" in formulas:
        seconds = evaluate(turn.state, scope_of(path), formulas["seconds"])
    else:
        seconds = node.params["seconds"]
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise InvalidArgument(f"node '{node.id}': a delay is a number of seconds")
    if "until" in formulas:
        seconds -= turn.at
    # A wait of nothing still ends by the clock, as any other.
    return min(max(float(seconds), 1e-6), WAIT_S_MAX)


def _wait_for_signal(turn: "Turn", path: str, node: PlanNode) -> None:
    turn.schedule(path, node, 1)
    deliver(turn, node.params["name"])


def _open(turn: "Turn", path: str, node: PlanNode, *, attempt: int = 1, plan: Any = None) -> None:
    scope, formulas = scope_of(path), node.params.get("formulas", {})
    total, variables = None, {}
    if node.kind == "foreach":
        total = len(_items(turn.state, scope, node))
    if node.kind == "loop":
        variables = {
            name: evaluate(turn.state, scope, formula)
            for name, formula in formulas.get("init", {}).items()
        }
    turn.happen(
        NodeOpened(
            at=turn.at,
            node_id=path,
            attempt=attempt,
            deadline=turn.at + node.timeout_s,
            total=total,
            variables=variables,
            plan=plan,
        )
    )


def _body_inputs(state: RunState, path: str, node: PlanNode, inputs: Wire) -> Wire:
    """Return the inputs of a body: a workflow's own, else those of the graph around."""
    return inputs if node.kind == "graph" else state.inputs_of(scope_of(path))


def _items(state: RunState, scope: str, node: PlanNode) -> list[Any]:
    items = evaluate(state, scope, node.params["formulas"]["items"])
    if not isinstance(items, list | tuple):
        raise InvalidArgument(f"node '{node.id}': its items are no list")
    if len(items) > node.params["max_items"]:
        raise InvalidArgument(
            f"node '{node.id}' has {len(items)} items; max_items is {node.params['max_items']}"
        )
    return list(items)


def _next_iteration(turn: "Turn", path: str, node: PlanNode, progress: Progress) -> None:
    if progress.error is not None:
        turn.fail(path, progress.error)
        return
    if progress.opened > progress.closed:
        return
    inputs = {**progress.variables, ITERATION_INDEX: progress.closed}
    goes_on = not progress.ended
    if goes_on and "while" in node.params["inner"]:
        goes_on = truth(turn.state, scope_of(path), node.params["inner"]["while"], inputs)
    limit = node.params["max_iterations"]
    if goes_on and progress.closed >= limit and not node.params["stop_at_limit"]:
        raise FailedPrecondition(f"node '{node.id}' would go on after {limit} iterations")
    if not goes_on or progress.closed >= limit:
        turn.complete(path, None, by=node.kind)
    elif not turn.is_long():
        turn.open(scope_path(path, progress.closed), inputs)


def _next_items(turn: "Turn", path: str, node: PlanNode, progress: Progress) -> None:
    if progress.error is not None:
        turn.fail(path, progress.error)
        return
    total = 0 if progress.ended else (progress.total or 0)
    busy = progress.opened - progress.closed
    if progress.opened >= total and not busy:
        turn.complete(path, None, by=node.kind)
        return
    room = min(node.params["max_parallel"] - busy, total - progress.opened)
    if room <= 0 or turn.is_long():
        return
    items = _items(turn.state, scope_of(path), node)
    for number in range(progress.opened, progress.opened + room):
        if turn.is_long():
            return
        inputs = {node.params["as"]: items[number], ITERATION_INDEX: number}
        turn.open(scope_path(path, number), inputs)


def _next_phase(turn: "Turn", path: str, node: PlanNode, progress: Progress) -> None:
    """Take a `try` from body to catch, to finally, to its end."""
    around = turn.state.inputs_of(scope_of(path))
    if progress.opened > progress.closed:
        return
    if progress.phase == "body" and progress.error is not None and "catch" in node.bodies:
        error = progress.error.model_dump()
        turn.open(scope_path(path, "catch"), {**around, "error": error})
    elif progress.phase != "finally" and "finally" in node.bodies:
        turn.open(scope_path(path, "finally"), around)
    else:
        _settle(turn, path, node, progress)


def _settle(turn: "Turn", path: str, node: PlanNode, progress: Progress) -> None:
    """End a control node whose graphs are through."""
    if progress.opened > progress.closed:
        return
    if progress.error is not None:
        turn.fail(path, progress.error)
    else:
        turn.complete(path, None, by=node.kind)
