"""How each kind of node is planned.

Control nodes keep in `params`

    formulas    expressions over what the node sees
    inner       expressions over what one iteration of its body sees

and their graphs in `bodies`.
"""

from collections.abc import Iterable
from typing import Any

from schemas.bindings import Offers, Place, bind, bind_explicit
from schemas.catalogue import Port
from schemas.compiler import (
    Planned,
    Planner,
    compile_body,
    compile_whole,
    plan_model,
    plan_template,
)
from schemas.errors import InvalidArgument, NotFound
from schemas.inputs import input_ports
from schemas.plan import HTTP_MODEL, RUN_INPUT, Binding, NodeKind, Plan, PlanNode
from schemas.structures import (
    HTTP_INPUTS,
    SIGNAL_TIMEOUT_S,
    DelayParams,
    DynamicParams,
    EmitParams,
    ForeachParams,
    HttpParams,
    LoopParams,
    SetParams,
    SignalParams,
    SwitchParams,
    TryParams,
    WorkflowParams,
    read_params,
    reference,
)
from schemas.workflow import WAIT_S_MAX, NodeType


EMIT_TIMEOUT_S = 30.0


def plan_set(place: Place) -> Planned:
    """Plan a `set` node."""
    params = _params(place, SetParams)
    values = _formulas(place, "values", params.values)
    return _control(place, "set", {"formulas": {"values": values}}), _values(values)


def plan_switch(place: Place) -> Planned:
    """Plan a `switch` node."""
    params = _params(place, SwitchParams)
    formulas: dict[str, Any] = {}
    if params.on is not None:
        formulas["on"] = place.check(params.on, "params.on")
    else:
        formulas["cases"] = _formulas(place, "cases", params.cases)
    settings = {"formulas": formulas, "default": params.default}
    return _control(place, "switch", settings), (Port(name="case", kind="text"),)


def plan_loop(place: Place) -> Planned:
    """Plan a `loop` node."""
    params = _params(place, LoopParams)
    given = _values({**params.init, **params.next}, "index")
    body, inside = compile_body(place, params.body, "params.body", given)
    also = {**inside, RUN_INPUT: given}
    inner: dict[str, Any] = {}
    if params.while_ is not None:
        inner["while"] = place.check(params.while_, "params.while", also={RUN_INPUT: given})
    if params.until is not None:
        inner["until"] = place.check(params.until, "params.until", also=also)
    inner["next"] = {
        name: place.check(formula, f"params.next.{name}", also=also)
        for name, formula in params.next.items()
    }
    settings = {
        "formulas": {"init": _formulas(place, "init", params.init)},
        "inner": inner,
        "max_iterations": params.max_iterations,
        "stop_at_limit": params.on_limit == "stop",
    }
    return _control(place, "loop", settings, body=body), None


def plan_foreach(place: Place) -> Planned:
    """Plan a `foreach` node."""
    params = _params(place, ForeachParams)
    given = _values((params.as_,), "index")
    body, inside = compile_body(place, params.body, "params.body", given)
    inner = {
        name: place.check(formula, f"params.{name}", also={**inside, RUN_INPUT: given})
        for name, formula in (("collect", params.collect), ("until", params.until))
        if formula is not None
    }
    settings = {
        "formulas": {"items": place.check(params.items, "params.items")},
        "inner": inner,
        "as": params.as_,
        "max_parallel": params.max_parallel,
        "max_items": params.max_items,
    }
    ports = (Port(name="items", kind="json"), Port(name="count", kind="json"))
    return _control(place, "foreach", settings, body=body), ports


def plan_try(place: Place) -> Planned:
    """Plan a `try` node."""
    params = _params(place, TryParams)
    around = place.around.given
    with_error = None if around is None else (*around, *(_values((), "error")))
    bodies = {
        name: compile_body(place, graph, f"params.{name}", given)[0]
        for name, graph, given in (
            ("body", params.body, around),
            ("catch", params.catch, with_error),
            ("finally", params.finally_, with_error),
        )
        if graph is not None
    }
    planned = _control(place, "try", {})
    return planned.model_copy(update={"bodies": bodies}), None


def plan_workflow(place: Place) -> Planned:
    """Plan a `workflow` node: the other workflow becomes a graph of this one."""
    params = _params(place, WorkflowParams)
    where = f"{place.where}.params.workflow"
    if params.workflow in place.around.calling:
        chain = " -> ".join([*place.around.calling, params.workflow])
        raise InvalidArgument(f"workflows call each other in a circle: {chain}", field=where)
    definition = place.around.workflows.get(reference(params.workflow, params.version))
    if definition is None:
        version = "" if params.version is None else f" version {params.version}"
        raise NotFound(
            f"node '{place.node.id}': no workflow '{params.workflow}'{version}", field=where
        )
    try:
        body, inside = compile_whole(definition, place.around.called(params.workflow))
    except (InvalidArgument, NotFound) as error:
        text = f"workflow '{params.workflow}', {error.field}: {error.message}"
        raise InvalidArgument(text, field=where) from error
    known = input_ports(body, place.around.catalogue)
    ports = [
        Port(name=name, kind=known[name].kind if name in known else "json", required=needed)
        for name, needed in body.run_inputs().items()
    ]
    if body.takes_any:
        named = {port.name for port in ports}
        ports += [
            Port.model_construct(name=name, kind="json", required=False)
            for name in place.node.inputs
            if name not in named
        ]
    planned = _control(place, "graph", {}, body=body).model_copy(
        update={
            "bindings": bind(place, ports),
            "timeout_s": place.node.timeout_s or definition.timeout_s or WAIT_S_MAX,
            "optional": tuple(port.name for port in ports if not port.required),
        }
    )
    return planned, _body_ports(body, inside)


def plan_dynamic(place: Place) -> Planned:
    """Plan a `dynamic` node."""
    params = _params(place, DynamicParams)
    settings = {
        "formulas": {"graph": place.check(params.graph, "params.graph")},
        "max_nodes": params.max_nodes,
    }
    return _control(place, "dynamic", settings), None


def plan_delay(place: Place) -> Planned:
    """Plan a `delay` node."""
    params = _params(place, DelayParams)
    settings: dict[str, Any] = {}
    if isinstance(params.seconds, float):
        settings["seconds"] = params.seconds
    elif params.seconds is not None:
        settings["formulas"] = {"seconds": place.check(params.seconds, "params.seconds")}
    elif params.until is not None:
        settings["formulas"] = {"until": place.check(params.until, "params.until")}
    return _control(place, "delay", settings), ()


def plan_signal(place: Place) -> Planned:
    """Plan a `signal` node."""
    params = _params(place, SignalParams)
    settings: dict[str, Any] = {"name": params.name}
    if "default" in params.model_fields_set:
        settings["default"] = params.default
    planned = _control(place, "signal", settings, timeout_s=SIGNAL_TIMEOUT_S)
    return planned, (Port(name="payload", kind="json"), Port(name="timed_out", kind="json"))


def plan_emit(place: Place) -> Planned:
    """Plan an `emit` node."""
    params = _params(place, EmitParams)
    binding = bind_explicit(place, "payload")
    names = [RUN_INPUT] if not place.sources else place.sources
    bindings = (
        {name: Binding(node=name, output="") for name in names}
        if binding is None
        else {"payload": binding}
    )
    planned = _control(place, "emit", {"subject": params.subject}, timeout_s=EMIT_TIMEOUT_S)
    return planned.model_copy(update={"bindings": bindings}), ()


def plan_http(place: Place) -> Planned:
    """Plan an `http` node: a model whose engine calls out."""
    params, node = _params(place, HttpParams), place.node
    spec = place.around.catalogue.model(HTTP_MODEL, field=f"{place.where}.type")
    if not params.url and "url" not in node.inputs:
        raise InvalidArgument(f"node '{node.id}' needs a url", field=f"{place.where}.params.url")
    bindings: dict[str, Binding] = {}
    for name in node.inputs:
        found = bind_explicit(place, name) if name in HTTP_INPUTS else None
        if found is None:
            raise InvalidArgument(
                f"node '{node.id}' has no input '{name}'; it has {', '.join(HTTP_INPUTS)}",
                field=f"{place.where}.inputs.{name}",
            )
        bindings[name] = found
    planned = PlanNode(
        id=node.id,
        model=HTTP_MODEL,
        modality=spec.modality,
        params=params.model_dump(exclude_defaults=True),
        bindings=bindings,
        timeout_s=node.timeout_s or spec.timeout_s,
        retry=node.retry,
    )
    return planned, spec.outputs


def _params(place: Place, kind: Any) -> Any:
    if place.node.inputs and place.node.type not in {"emit", "http", "workflow"}:
        raise InvalidArgument(
            f"a {place.node.type} node has no inputs; its expressions name what they need",
            field=f"{place.where}.inputs",
        )
    document = dict(place.node.params)
    if place.node.type == "signal":
        document.setdefault("name", place.node.id)
    return read_params(kind, document, f"{place.where}.params")


def _values(names: Iterable[str], *more: str) -> tuple[Port, ...]:
    """Return what a graph's `input` holds, as ports."""
    return tuple(Port.model_construct(name=name, kind="json") for name in [*names, *more])


def _formulas(place: Place, name: str, formulas: dict[str, str]) -> dict[str, str]:
    return {key: place.check(formula, f"params.{name}.{key}") for key, formula in formulas.items()}


def _control(
    place: Place,
    kind: NodeKind,
    params: dict[str, Any],
    *,
    body: Plan | None = None,
    timeout_s: float = WAIT_S_MAX,
) -> PlanNode:
    return PlanNode(
        id=place.node.id,
        model=kind,
        modality="text",
        params=params,
        timeout_s=place.node.timeout_s or timeout_s,
        retry=place.node.retry,
        kind=kind,
        bodies={} if body is None else {"body": body},
    )


def _body_ports(body: Plan, inside: Offers) -> tuple[Port, ...] | None:
    """Return what a graph as a whole gives: its only sink's outputs, or each sink under its id."""
    if len(body.outputs) == 1:
        return inside[body.outputs[0]]
    return None


PLANNERS: dict[NodeType, Planner] = {
    "model": plan_model,
    "template": plan_template,
    "set": plan_set,
    "switch": plan_switch,
    "loop": plan_loop,
    "foreach": plan_foreach,
    "try": plan_try,
    "workflow": plan_workflow,
    "dynamic": plan_dynamic,
    "delay": plan_delay,
    "signal": plan_signal,
    "emit": plan_emit,
    "http": plan_http,
}
