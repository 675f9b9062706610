"""From a definition to a plan: models and templates resolved, every input bound to a source.

How inputs find their sources stands in `schemas.bindings`, each kind of control node in
`schemas.controls`.
"""

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from schemas import mustache
from schemas.bindings import Offers, Place, Ports, Surroundings, bind, check_expression
from schemas.catalogue import (
    TEMPLATE_CHARS_MAX,
    Catalogue,
    ModelSpec,
    Port,
    signature,
)
from schemas.errors import InvalidArgument, NotFound
from schemas.inputs import mentioned_inputs
from schemas.plan import (
    DEFAULT_POOL,
    HTTP_MODEL,
    RUN,
    RUN_INPUT,
    TEMPLATE_ENGINE,
    Binding,
    Gate,
    Plan,
    PlanEdge,
    PlanNode,
    Route,
)
from schemas.workflow import MEMO_S, Edge, WorkflowDefinition, invalid


TEMPLATE_TIMEOUT_S = 10.0
REMEMBERED = {"model", "http"}
JOINS = {"all": 0, "any": 1}

Planned = tuple[PlanNode, tuple[Port, ...] | None]
Planner = Callable[[Place], Planned]


def compile_plan(
    definition: WorkflowDefinition,
    catalogue: Catalogue,
    workflows: Mapping[str, WorkflowDefinition] | None = None,
) -> Plan:
    """Compile a whole workflow.

    Args:
        definition: The workflow.
        catalogue: The models and templates there are.
        workflows: What its `workflow` nodes may name.

    Raises:
        InvalidArgument: Names the node that lacks a parameter or an input.
        NotFound: Names the node whose model, template or workflow does not exist.
    """
    around = Surroundings(catalogue, workflows or {}, priority=definition.priority)
    plan, _ = compile_whole(definition, around)
    return plan.model_copy(
        update={
            "timeout_s": definition.timeout_s or 0.0,
            "mode": definition.mode,
            "pause_on_failure": definition.on_failure == "pause",
        }
    )


def compile_whole(definition: WorkflowDefinition, around: Surroundings) -> tuple[Plan, Offers]:
    """Compile a graph that has inputs of its own: a run's, or a `workflow` node's."""
    plan, offers = compile_graph(definition, around, "")
    mentioned = mentioned_inputs(plan)
    update = {"mentioned": tuple(sorted(mentioned - {""})), "takes_any": "" in mentioned}
    return plan.model_copy(update=update), offers


def compile_graph(
    graph: WorkflowDefinition, around: Surroundings, where: str
) -> tuple[Plan, Offers]:
    """Compile one graph; return its plan and what its nodes give.

    Raises:
        InvalidArgument, NotFound: As `compile_plan`.
    """
    from schemas.controls import PLANNERS  # noqa: PLC0415 - they compile graphs in turn

    order = graph.check_graph()
    by_id = {node.id: (index, node) for index, node in enumerate(graph.nodes)}
    sources: dict[str, list[str]] = {node_id: [] for node_id in order}
    for edge in graph.edges:
        sources[edge.target].append(edge.source)
    offers: Offers = {}
    planned: list[PlanNode] = []
    for node_id in order:
        index, node = by_id[node_id]
        upstream = _ancestors(node_id, sources)
        place = Place(
            node=node,
            where=f"{where}nodes[{index}]",
            sources=sources[node_id],
            upstream=[name for name in order if name in upstream],
            offers=offers,
            around=around,
        )
        _check_id(place)
        _check_routing(place)
        one, offers[node_id] = PLANNERS[node.type](place)
        planned.append(_finish(one, place, graph, where))
    feeding = {edge.source for edge in graph.edges}
    sinks = tuple(node_id for node_id in order if node_id not in feeding)
    return Plan(nodes=tuple(planned), outputs=sinks), offers


def compile_body(
    place: Place, document: Any, field_name: str, given: Ports, *, blind: bool = False
) -> tuple[Plan, Offers]:
    """Compile a graph that stands in a node's parameters.

    Args:
        place: The node.
        document: The graph.
        field_name: Where it stands in the node.
        given: Its own inputs.
        blind: It sees nothing outside: what is there may be gone when it runs.

    Raises:
        InvalidArgument, NotFound: Names the offending place inside it.
    """
    where = f"{place.where}.{field_name}."
    try:
        graph = WorkflowDefinition.model_validate(document)
    except ValidationError as error:
        wrong = invalid(error)
        raise InvalidArgument(wrong.message, field=f"{where}{wrong.field or ''}") from error
    own = {"timeout_s", "on_failure", "priority", "mode"}
    if own & graph.model_dump(exclude_defaults=True).keys():
        raise InvalidArgument(
            "timeout_s, on_failure, priority and mode belong to the outermost graph",
            field=where.rstrip("."),
        )
    try:
        around = place.around.inside({} if blind else place.seen, given)
        return compile_graph(graph, around, where)
    except (InvalidArgument, NotFound) as error:
        if error.field is None or not error.field.startswith(where):
            inner = f"{where}{error.field}" if error.field else where.rstrip(".")
            raise type(error)(error.message, field=inner) from error
        raise


def plan_model(place: Place) -> Planned:
    """Plan a `model` node."""
    node, where = place.node, place.where
    name = node.params.get("model")
    if not isinstance(name, str):
        raise InvalidArgument(
            f"node '{node.id}' needs the name of a model", field=f"{where}.params.model"
        )
    if name == HTTP_MODEL:
        raise InvalidArgument(
            f"node '{node.id}': to call an address, give the node the type http",
            field=f"{where}.params.model",
        )
    spec = place.around.catalogue.model(name, field=f"{where}.params.model")
    given = {key: value for key, value in node.params.items() if key != "model"}
    params = place.around.catalogue.params(name, given, field=f"{where}.params")
    planned = model_node(place, name, spec, params)
    routed = {
        "pool": node.pool or DEFAULT_POOL,
        "alternatives": _alternatives(place, spec),
        "fastest": node.prefer == "fastest",
        "hedge_after_s": node.hedge_after_s or 0.0,
    }
    if node.hedge_after_s and not node.alternatives:
        raise InvalidArgument(
            f"node '{node.id}' has no alternatives to ask", field=f"{where}.hedge_after_s"
        )
    return planned.model_copy(update=routed), spec.outputs


def _alternatives(place: Place, spec: ModelSpec) -> tuple[Route, ...]:
    routes: list[Route] = []
    for index, other in enumerate(place.node.alternatives):
        where = f"{place.where}.alternatives[{index}]"
        found = place.around.catalogue.model(other.model, field=f"{where}.model")
        if signature(found) != signature(spec):
            raise InvalidArgument(
                f"node '{place.node.id}': '{other.model}' has other inputs or outputs",
                field=f"{where}.model",
            )
        routes.append(
            Route(
                model=other.model,
                modality=found.modality,
                pool=other.pool or place.node.pool or DEFAULT_POOL,
                params=place.around.catalogue.params(
                    other.model, other.params, field=f"{where}.params"
                ),
            )
        )
    return tuple(routes)


def model_node(place: Place, name: str, spec: ModelSpec, params: dict[str, Any]) -> PlanNode:
    """Return the plan of a node that a worker runs."""
    return PlanNode(
        id=place.node.id,
        model=name,
        modality=spec.modality,
        params=params,
        bindings=bind(place, spec.inputs),
        optional=tuple(port.name for port in spec.inputs if not port.required),
        timeout_s=place.node.timeout_s or spec.timeout_s,
        retry=place.node.retry,
    )


def plan_template(place: Place) -> Planned:
    """Plan a `template` node."""
    node, where = place.node, place.where
    unknown = sorted(set(node.params) - {"template_id", "template"})
    if unknown or len(node.params) != 1:
        raise InvalidArgument(
            f"node '{node.id}' needs exactly one of template_id, template",
            field=f"{where}.params" + (f".{unknown[0]}" if unknown else ""),
        )
    names = [RUN_INPUT, *([RUN] if place.around.depth else []), *place.seen]
    planned = PlanNode(
        id=node.id,
        model=TEMPLATE_ENGINE,
        modality="text",
        params={"template": _template_text(place)},
        bindings={name: Binding(node=name, output="") for name in names},
        timeout_s=node.timeout_s or TEMPLATE_TIMEOUT_S,
        retry=node.retry,
    )
    return planned, (Port(name="text", kind="text"),)


def _check_routing(place: Place) -> None:
    node = place.node
    if node.type != "model" and (node.pool or node.alternatives or node.hedge_after_s):
        raise InvalidArgument(
            f"a {node.type} node has no pool and no alternatives", field=f"{place.where}.type"
        )
    if node.memo is not False and node.type not in REMEMBERED:
        raise InvalidArgument(
            f"a {node.type} node has no memo; model and http nodes may have one",
            field=f"{place.where}.memo",
        )
    if node.memo is not False and node.type == "http" and node.params.get("method", "GET") != "GET":
        raise InvalidArgument(
            f"node '{node.id}': only a GET may be remembered", field=f"{place.where}.memo"
        )


def _finish(planned: PlanNode, place: Place, graph: WorkflowDefinition, where: str) -> PlanNode:
    """Add what every kind of node has: sources, conditions of its edges, join, compensation."""
    node = place.node
    guards: list[PlanEdge] = []
    for index, edge in enumerate(graph.edges):
        if edge.target != node.id or (edge.when is None and edge.case is None):
            continue
        at = f"{where}edges[{index}]"
        if edge.case is not None:
            _check_case(graph, edge, at)
        if edge.when is not None:
            check_expression(edge.when, place.named, f"{at}.when", node.id)
        guards.append(PlanEdge(source=edge.source, when=edge.when or "", case=edge.case or ""))
    join = JOINS[node.join] if isinstance(node.join, str) else node.join
    if join > len(place.sources) and node.join != "any":
        raise InvalidArgument(
            f"node '{node.id}' has {len(place.sources)} incoming edges", field=f"{place.where}.join"
        )
    bodies = dict(planned.bodies)
    if node.compensate is not None:
        given = (Port(name="outputs", kind="json"), Port(name="error", kind="json"))
        bodies["compensate"], _ = compile_body(
            place, node.compensate, "compensate", given, blind=True
        )
    gate: Gate | None = None
    if node.concurrency is not None:
        key = place.check(node.concurrency.key, "concurrency.key")
        gate = Gate(key=key, limit=node.concurrency.limit)
    return planned.model_copy(
        update={
            "lane": node.priority or place.around.priority,
            "memo_s": MEMO_S if node.memo is True else float(node.memo),
            "gate": gate,
            "sources": tuple(place.sources),
            "guards": tuple(guards),
            "join": join if place.sources else 0,
            "bodies": bodies,
        }
    )


def _check_case(graph: WorkflowDefinition, edge: Edge, where: str) -> None:
    source = next(node for node in graph.nodes if node.id == edge.source)
    if source.type != "switch":
        raise InvalidArgument(f"node '{edge.source}' is no switch", field=f"{where}.case")
    cases, default = source.params.get("cases"), source.params.get("default", "default")
    if isinstance(cases, dict) and edge.case not in {*cases, default}:
        known = ", ".join([*cases, default])
        raise InvalidArgument(
            f"switch '{edge.source}' has no case '{edge.case}'; it has {known}",
            field=f"{where}.case",
        )


def _check_id(place: Place) -> None:
    if place.node.id in {RUN_INPUT, RUN}:
        raise InvalidArgument(
            f"'{place.node.id}' names the inputs; call the node something else",
            field=f"{place.where}.id",
        )
    if place.node.id in place.around.outer:
        raise InvalidArgument(
            f"node id '{place.node.id}' is used outside of this graph already",
            field=f"{place.where}.id",
        )


def _ancestors(node_id: str, sources: Mapping[str, list[str]]) -> set[str]:
    found: set[str] = set()
    pending = list(sources[node_id])
    while pending:
        ancestor = pending.pop()
        if ancestor not in found:
            found.add(ancestor)
            pending.extend(sources[ancestor])
    return found


def _template_text(place: Place) -> str:
    node, where, catalogue = place.node, place.where, place.around.catalogue
    if "template_id" in node.params:
        template_id = node.params["template_id"]
        spec = catalogue.templates.get(template_id) if isinstance(template_id, str) else None
        if spec is None:
            known = ", ".join(sorted(catalogue.templates))
            raise NotFound(
                f"node '{node.id}': no template '{template_id}'; known: {known}",
                field=f"{where}.params.template_id",
            )
        return spec.text
    text = node.params["template"]
    if not isinstance(text, str) or len(text) > TEMPLATE_CHARS_MAX:
        raise InvalidArgument(
            f"node '{node.id}': a template is a text of at most {TEMPLATE_CHARS_MAX} characters",
            field=f"{where}.params.template",
        )
    try:
        mustache.check(text)
    except InvalidArgument as error:
        raise InvalidArgument(
            f"node '{node.id}': {error.message}", field=f"{where}.params.template"
        ) from error
    return text
