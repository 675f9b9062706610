"""What a node can see, and where each of its inputs comes from.

An input is fed by its explicit source; else by a direct predecessor's output of the same name, else
of the same kind; else by the graph's own input of the same name. What is known of both must fit
(`schemas.edges`). A graph inside a control node
sees its own nodes, then the nodes upstream of the control node, and so on outwards.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from schemas.catalogue import Catalogue, Port
from schemas.edges import adaptation_of, is_made_of, mismatch
from schemas.errors import InvalidArgument
from schemas.expressions import parse
from schemas.plan import RUN, RUN_INPUT, Binding
from schemas.workflow import Node, Priority, WorkflowDefinition


DEPTH_MAX = 8
"""Graphs inside graphs."""

Ports = tuple[Port, ...] | None
"""What a node gives, or a graph's own inputs; None where that shows only when it runs."""
Offers = dict[str, Ports]
"""What each node gives."""


@dataclass(frozen=True)
class Surroundings:
    """What a graph is compiled in."""

    catalogue: Catalogue
    workflows: Mapping[str, WorkflowDefinition] = field(default_factory=dict)
    """Definitions that `workflow` nodes may name."""
    outer: Offers = field(default_factory=dict)
    """Nodes outside that the graph can see."""
    calling: tuple[str, ...] = ()
    """The workflows we are in the middle of."""
    depth: int = 0
    given: Ports = None
    """The graph's own inputs, where they are known."""
    priority: Priority = "normal"
    """Of tasks, where a node does not say."""

    def inside(self, seen: Offers, given: Ports) -> "Surroundings":
        """Return the surroundings of a graph inside a node.

        Args:
            seen: Nodes outside that it can see.
            given: Its own inputs.

        Raises:
            InvalidArgument: Too deep.
        """
        if self.depth >= DEPTH_MAX:
            raise InvalidArgument(f"graphs nest at most {DEPTH_MAX} deep")
        return replace(self, outer=seen, given=given, depth=self.depth + 1)

    def called(self, workflow: str) -> "Surroundings":
        """Return the surroundings of another workflow, which sees nothing outside."""
        return replace(self.inside({}, None), calling=(*self.calling, workflow))


@dataclass(frozen=True)
class Place:
    """A node and what stands around it while it is planned."""

    node: Node
    where: str
    """Path of the node in the document."""
    sources: list[str]
    upstream: list[str]
    """Every node before it in its own graph, in topological order."""
    offers: Offers
    """Of the nodes of its own graph planned so far."""
    around: Surroundings

    @property
    def seen(self) -> Offers:
        """Everything the node can see by name."""
        return {**self.around.outer, **{name: self.offers[name] for name in self.upstream}}

    def is_given(self, name: str) -> bool:
        """Tell whether the graph's own inputs may hold a name."""
        given = self.around.given
        return given is None or name in {port.name for port in given}

    @property
    def named(self) -> Offers:
        """Everything that an expression of the node may name, `input` among it."""
        return {**self.seen, RUN_INPUT: self.around.given, RUN: None}

    def check(self, formula: str, field_name: str, *, also: Offers | None = None) -> str:
        """Return an expression that is well-formed and names only what there is.

        Args:
            formula: The expression.
            field_name: Where it stands in the node.
            also: What it may name besides what the node sees.

        Raises:
            InvalidArgument: It is not; names the field.
        """
        where = f"{self.where}.{field_name}"
        return check_expression(formula, {**self.named, **(also or {})}, where, self.node.id)


def check_expression(formula: str, named: Offers, where: str, node_id: str) -> str:
    """Return an expression that is well-formed and names only what there is.

    Raises:
        InvalidArgument: It is not; names the field.
    """
    try:
        expression = parse(formula)
    except InvalidArgument as error:
        raise InvalidArgument(f"node '{node_id}': {error.message}", field=where) from error
    for name in sorted(expression.names):
        if name not in named:
            known = ", ".join(sorted(named))
            raise InvalidArgument(
                f"node '{node_id}' cannot see '{name}' here; it sees {known}", field=where
            )
    for name, key in expression.paths():
        _check_key(name, key, named, where)
    return formula


def _check_key(name: str, key: str, named: Offers, where: str) -> None:
    ports = named.get(name)
    if ports is None or key in {port.name for port in ports}:
        return
    has = ", ".join(sorted(port.name for port in ports)) or "nothing"
    what = f"'{name}' holds {has} here" if name == RUN_INPUT else f"node '{name}' gives {has}"
    raise InvalidArgument(f"{what}, not '{key}'", field=where)


def bind(place: Place, ports: Iterable[Port]) -> dict[str, Binding]:
    """Return where each input of a node comes from.

    Raises:
        InvalidArgument: An explicit source that does not exist, or nothing fits an input.
    """
    node, where = place.node, place.where
    wanted = {port.name: port for port in ports}
    for name in node.inputs:
        if name not in wanted:
            known = ", ".join(wanted)
            raise InvalidArgument(
                f"node '{node.id}' has no input '{name}'; it has {known}",
                field=f"{where}.inputs.{name}",
            )
    bindings: dict[str, Binding] = {}
    for port in wanted.values():
        found = bind_explicit(place, port.name) or _find(port, place)
        if found is None and port.required and (place.sources or not place.is_given(port.name)):
            raise InvalidArgument(
                f"node '{node.id}': nothing upstream gives its input '{port.name}' ({port.kind}); "
                f'connect a node that does, or say where from in "inputs"',
                field=f"{where}.inputs.{port.name}",
            )
        found = found or Binding(node=RUN_INPUT, output=port.name)
        bindings[port.name] = _fitted(found, port, place)
    return bindings


def _fitted(binding: Binding, port: Port, place: Place) -> Binding:
    """Return a binding with what makes a file fit the input.

    Raises:
        InvalidArgument: What comes that way cannot go into it; names both.
    """
    for one in (binding, *binding.otherwise):
        offers = None if one.expression else place.named.get(one.node)
        offer = next((item for item in offers or () if item.name == one.output), None)
        why = None if offer is None else mismatch(offer, port)
        if why is not None:
            raise InvalidArgument(
                f"node '{place.node.id}': its input '{port.name}' does not fit "
                f"{one.node}.{one.output}: {why}",
                field=f"{place.where}.inputs.{port.name}",
            )
    return binding.model_copy(update={"adapt": adaptation_of(port)})


def bind_explicit(place: Place, name: str) -> Binding | None:
    """Return the source that a node's own `inputs` name for an input.

    Raises:
        InvalidArgument: There is no such source.
    """
    source = place.node.inputs.get(name)
    if source is None:
        return None
    if source.startswith("="):
        formula = place.check(source[1:].strip(), f"inputs.{name}")
        return Binding(node="", output="", expression=formula)
    origin, dot, output = source.partition(".")
    where = f"{place.where}.inputs.{name}"
    named = place.named
    if not dot or not output or origin not in named:
        raise InvalidArgument(
            f"node '{place.node.id}': '{source}' is neither input.<name> nor "
            f"<node upstream>.<output>, nor an expression after '='",
            field=where,
        )
    _check_key(origin, output, named, where)
    return Binding(node=origin, output=output)


def _find(port: Port, place: Place) -> Binding | None:
    """Return the direct predecessors' outputs that fit a port, the first one before the others."""
    offered = [(source, place.offers[source] or ()) for source in place.sources]
    fits: tuple[Callable[[Port], bool], ...] = (
        lambda offer: offer.name == port.name,
        lambda offer: offer.kind == port.kind and mismatch(offer, port) is None,
        lambda offer: is_made_of(offer, port),
        lambda offer: offer.kind == port.kind,
    )
    for fit in fits:
        found = [
            Binding(node=source, output=next(offer.name for offer in offers if fit(offer)))
            for source, offers in offered
            if any(fit(offer) for offer in offers)
        ]
        if found:
            return found[0].model_copy(update={"otherwise": tuple(found[1:])})
    unsure = [source for source in place.sources if place.offers[source] is None]
    return Binding(node=unsure[0], output=port.name) if unsure else None
