"""A definition compiled against the catalogue: what the orchestrator needs and nothing else."""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import Field

from schemas import mustache
from schemas.catalogue import TEMPLATE_CHARS_MAX, Catalogue, Modality, ModelSpec, Port, merge_params
from schemas.errors import InvalidArgument, NotFound
from schemas.message import Message
from schemas.workflow import Node, RetryPolicy, WorkflowDefinition


RUN_INPUT = "input"
TEMPLATE_ENGINE = "template"
DEFAULT_POOL = "default"
TEMPLATE_TIMEOUT_S = 10.0


class Binding(Message):
    """Where one input of a node comes from."""

    node: str
    """A node id, or `input` for the run's own inputs."""
    output: str
    """Name of that node's output; empty for all of them (a template's context)."""


class PlanNode(Message):
    """One node, ready to be scheduled."""

    id: str
    model: str
    modality: Modality
    pool: str = DEFAULT_POOL
    params: dict[str, Any] = Field(default_factory=dict)
    sources: tuple[str, ...] = ()
    """Nodes that must complete first."""
    bindings: dict[str, Binding] = Field(default_factory=dict)
    optional: tuple[str, ...] = ()
    """Inputs that may stay empty."""
    timeout_s: float
    retry: RetryPolicy


class Plan(Message):
    """The compiled graph, in topological order."""

    nodes: tuple[PlanNode, ...]
    outputs: tuple[str, ...]
    """The sinks: their outputs are the run's outputs."""

    def node(self, node_id: str) -> PlanNode:
        """Return one node by id."""
        return next(node for node in self.nodes if node.id == node_id)

    def run_inputs(self) -> dict[str, bool]:
        """Return the names of the inputs a run must bring (True) or may bring (False)."""
        names: dict[str, bool] = {}
        for node in self.nodes:
            for name, binding in node.bindings.items():
                if binding.node == RUN_INPUT and binding.output:
                    needed = name not in node.optional
                    names[binding.output] = names.get(binding.output, False) or needed
        return names


def compile_plan(definition: WorkflowDefinition, catalogue: Catalogue) -> Plan:
    """Resolve models and templates, and bind every input to a source.

    An input is fed by its explicit source; else by a direct predecessor's output of the same name,
    else of the same kind; else by the run input of the same name.

    Raises:
        InvalidArgument: Names the node that lacks a parameter or an input.
        NotFound: Names the node whose model or template does not exist.
    """
    order = definition.check_graph()
    by_id = {node.id: (index, node) for index, node in enumerate(definition.nodes)}
    sources: dict[str, list[str]] = {node_id: [] for node_id in order}
    for edge in definition.edges:
        sources[edge.target].append(edge.source)
    offers: dict[str, tuple[Port, ...]] = {}
    planned: list[PlanNode] = []
    for node_id in order:
        index, node = by_id[node_id]
        where = f"nodes[{index}]"
        upstream = _ancestors(node_id, sources)
        if node.type == "template":
            context = [name for name in order if name in upstream]
            planned.append(_plan_template(node, catalogue, sources[node_id], context, where))
            offers[node_id] = (Port(name="text", kind="text"),)
            continue
        name, spec = _model_of(node, catalogue, where)
        offers[node_id] = spec.outputs
        planned.append(
            PlanNode(
                id=node_id,
                model=name,
                modality=spec.modality,
                params=merge_params(spec, {k: v for k, v in node.params.items() if k != "model"}),
                sources=tuple(sources[node_id]),
                bindings=_bind(node, spec, sources[node_id], offers, upstream, where),
                optional=tuple(port.name for port in spec.inputs if not port.required),
                timeout_s=node.timeout_s or spec.timeout_s,
                retry=node.retry,
            )
        )
    feeding = {edge.source for edge in definition.edges}
    sinks = tuple(node_id for node_id in order if node_id not in feeding)
    return Plan(nodes=tuple(planned), outputs=sinks)


def _ancestors(node_id: str, sources: Mapping[str, list[str]]) -> set[str]:
    found: set[str] = set()
    pending = list(sources[node_id])
    while pending:
        ancestor = pending.pop()
        if ancestor not in found:
            found.add(ancestor)
            pending.extend(sources[ancestor])
    return found


def _model_of(node: Node, catalogue: Catalogue, where: str) -> tuple[str, ModelSpec]:
    name = node.params.get("model")
    if not isinstance(name, str):
        raise InvalidArgument(
            f"node '{node.id}' needs the name of a model", field=f"{where}.params.model"
        )
    return name, catalogue.model(name, field=f"{where}.params.model")


def _plan_template(
    node: Node, catalogue: Catalogue, sources: list[str], upstream: list[str], where: str
) -> PlanNode:
    unknown = sorted(set(node.params) - {"template_id", "template"})
    if unknown or len(node.params) != 1:
        raise InvalidArgument(
            f"node '{node.id}' needs exactly one of template_id, template",
            field=f"{where}.params" + (f".{unknown[0]}" if unknown else ""),
        )
    return PlanNode(
        id=node.id,
        model=TEMPLATE_ENGINE,
        modality="text",
        params={"template": _template_text(node, catalogue, where)},
        sources=tuple(sources),
        bindings={name: Binding(node=name, output="") for name in (RUN_INPUT, *upstream)},
        timeout_s=node.timeout_s or TEMPLATE_TIMEOUT_S,
        retry=node.retry,
    )


def _template_text(node: Node, catalogue: Catalogue, where: str) -> str:
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


def _bind(
    node: Node,
    spec: ModelSpec,
    sources: list[str],
    offers: Mapping[str, tuple[Port, ...]],
    upstream: set[str],
    where: str,
) -> dict[str, Binding]:
    wanted = {port.name: port for port in spec.inputs}
    for name, source in node.inputs.items():
        if name not in wanted:
            known = ", ".join(wanted)
            raise InvalidArgument(
                f"node '{node.id}' has no input '{name}'; it has {known}",
                field=f"{where}.inputs.{name}",
            )
        _check_source(node, name, source, offers, upstream, where)
    bindings: dict[str, Binding] = {}
    for port in spec.inputs:
        found = _find(port, node.inputs.get(port.name), sources, offers)
        if found is None and sources and port.required:
            raise InvalidArgument(
                f"node '{node.id}': nothing upstream gives its input '{port.name}' ({port.kind}); "
                f'connect a node that does, or say where from in "inputs"',
                field=f"{where}.inputs.{port.name}",
            )
        bindings[port.name] = found or Binding(node=RUN_INPUT, output=port.name)
    return bindings


def _check_source(
    node: Node,
    name: str,
    source: str,
    offers: Mapping[str, tuple[Port, ...]],
    upstream: set[str],
    where: str,
) -> None:
    origin, dot, output = source.partition(".")
    known = {port.name for port in offers.get(origin, ())}
    if not dot or not output or (origin != RUN_INPUT and origin not in upstream):
        raise InvalidArgument(
            f"node '{node.id}': '{source}' is neither input.<name> nor <node upstream>.<output>",
            field=f"{where}.inputs.{name}",
        )
    if origin != RUN_INPUT and output not in known:
        raise InvalidArgument(
            f"node '{origin}' gives {', '.join(sorted(known))}, not '{output}'",
            field=f"{where}.inputs.{name}",
        )


def _find(
    port: Port,
    explicit: str | None,
    sources: Iterable[str],
    offers: Mapping[str, tuple[Port, ...]],
) -> Binding | None:
    if explicit is not None:
        origin, _, output = explicit.partition(".")
        return Binding(node=origin, output=output)
    candidates = [(source, offer) for source in sources for offer in offers[source]]
    for source, offer in candidates:
        if offer.name == port.name:
            return Binding(node=source, output=offer.name)
    for source, offer in candidates:
        if offer.kind == port.kind:
            return Binding(node=source, output=offer.name)
    return None
