"""A definition compiled against the catalogue: what the orchestrator needs and nothing else."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from operator import not_
from typing import Any, Literal

from pydantic import Field

from schemas.catalogue import Modality
from schemas.message import Message
from schemas.workflow import Mode, RetryPolicy


RUN_INPUT = "input"
"""The name of a graph's own inputs."""
RUN = "run"
"""The name of the whole run's inputs, inside the graphs of control nodes too."""
TEMPLATE_ENGINE = "template"
HTTP_MODEL = "http"
DEFAULT_POOL = "default"

NodeKind = Literal[
    "model",
    "set",
    "switch",
    "loop",
    "foreach",
    "try",
    "graph",
    "dynamic",
    "delay",
    "signal",
    "emit",
]
DISPATCHED: frozenset[NodeKind] = frozenset({"model", "dynamic", "emit"})
"""Kinds whose attempts somebody outside the decision carries out."""
EXPAND_S = 30.0
"""Time for an attempt to compile the graph that a dynamic node was given."""


class Adaptation(Message):
    """How an input is made of a file or a text that comes: in the worker, before the engine."""

    adapter: str
    """Name and version: a version computes the same for ever."""
    params: dict[str, Any] = Field(default_factory=dict)


class Binding(Message):
    """Where one input of a node comes from."""

    node: str
    """A node id, `input` for the graph's own inputs, `run` for the run's."""
    output: str
    """Name of that node's output; empty for all of them (a template's context)."""
    expression: str = Field(default="", exclude_if=not_)
    """Computed instead, from everything the node can see."""
    otherwise: tuple["Binding", ...] = Field(default=(), exclude_if=not_)
    """Where from when that node was skipped."""
    adapt: Adaptation | None = Field(default=None, exclude_if=not_)
    """What is done to a file or a text that comes this way."""


def adaptations(bindings: Mapping[str, Binding]) -> dict[str, Adaptation]:
    """Return how inputs are made of files and texts, by input."""
    return {name: item.adapt for name, item in bindings.items() if item.adapt is not None}


class PlanEdge(Message):
    """An edge that is not always taken."""

    source: str
    when: str = Field(default="", exclude_if=not_)
    """An expression."""
    case: str = Field(default="", exclude_if=not_)
    """Of the switch that is its source."""


class Route(Message):
    """One way to do a node: whose workers run which model."""

    model: str
    modality: Modality
    pool: str = DEFAULT_POOL
    params: dict[str, Any] = Field(default_factory=dict)

    @property
    def name(self) -> str:
        """What its health is kept under."""
        return f"{self.pool}/{self.model}"


class Gate(Message):
    """A key, and how many of it may be under way at once."""

    key: str
    """An expression."""
    limit: int


class PlanNode(Message):
    """One node, ready to be scheduled. What is empty is not stored."""

    id: str
    model: str
    modality: Modality
    pool: str = DEFAULT_POOL
    params: dict[str, Any] = Field(default_factory=dict)
    sources: tuple[str, ...] = ()
    """Nodes that must be decided first."""
    bindings: dict[str, Binding] = Field(default_factory=dict)
    optional: tuple[str, ...] = ()
    """Inputs that may stay empty."""
    timeout_s: float
    retry: RetryPolicy
    kind: NodeKind = Field(default="model", exclude_if=lambda kind: kind == "model")
    guards: tuple[PlanEdge, ...] = Field(default=(), exclude_if=not_)
    """The incoming edges that have a condition."""
    join: int = Field(default=0, exclude_if=not_)
    """Taken edges to begin with; 0 waits until all are decided and needs one."""
    alternatives: tuple[Route, ...] = Field(default=(), exclude_if=not_)
    """Other ways to do it."""
    fastest: bool = Field(default=False, exclude_if=not_)
    """Whether the soonest answer counts for more than the order of the ways."""
    hedge_after_s: float = Field(default=0.0, exclude_if=not_)
    """Ask another way too after this long; 0 never."""
    lane: str = Field(default="normal", exclude_if=lambda lane: lane == "normal")
    """Priority of its tasks."""
    memo_s: float = Field(default=0.0, exclude_if=not_)
    """Take a result that is at most this old; 0 never."""
    gate: Gate | None = Field(default=None, exclude_if=not_)
    """What it waits for before it begins."""
    bodies: dict[str, "Plan"] = Field(default_factory=dict, exclude_if=not_)
    """Graphs of its own by name: body, catch, finally, compensate."""

    @property
    def attempt_s(self) -> float:
        """Time for one attempt, or for a wait, seconds."""
        return min(self.timeout_s, EXPAND_S) if self.kind == "dynamic" else self.timeout_s

    @cached_property
    def routes(self) -> tuple[Route, ...]:
        """Every way to do it, the node's own first."""
        own = Route(model=self.model, modality=self.modality, pool=self.pool, params=self.params)
        return (own, *self.alternatives)


class Plan(Message):
    """The compiled graph, in topological order."""

    nodes: tuple[PlanNode, ...]
    outputs: tuple[str, ...]
    """The sinks: their outputs are the run's outputs."""
    timeout_s: float = Field(default=0.0, exclude_if=not_)
    """Time for the whole run; 0 for any."""
    mode: Mode = Field(default="strong", exclude_if=lambda mode: mode == "strong")
    """How far its effects may lead the log."""
    pause_on_failure: bool = Field(default=False, exclude_if=not_)
    mentioned: tuple[str, ...] = Field(default=(), exclude_if=not_)
    """Run inputs that only expressions use; none of them must be there."""
    takes_any: bool = Field(default=False, exclude_if=not_)
    """Whether inputs that nothing names are of use, to a template for instance."""

    @cached_property
    def gated(self) -> bool:
        """Whether a node, inside control nodes too, waits for a gate."""
        return any(
            node.gate is not None or any(body.gated for body in node.bodies.values())
            for node in self.nodes
        )

    @cached_property
    def by_id(self) -> Mapping[str, PlanNode]:
        """The nodes by id."""
        return {node.id: node for node in self.nodes}

    @cached_property
    def waiting(self) -> Mapping[str, list[PlanNode]]:
        """The nodes that wait for a node, among others, by the latter's id."""
        found: dict[str, list[PlanNode]] = {}
        for node in self.nodes:
            for source in node.sources:
                found.setdefault(source, []).append(node)
        return found

    @cached_property
    def followers(self) -> Mapping[str, PlanNode]:
        """The node that alone waits for a node, and for that one alone, by the latter's id."""
        return {
            source: nodes[0]
            for source, nodes in self.waiting.items()
            if len(nodes) == 1 and nodes[0].sources == (source,)
        }

    def node(self, node_id: str) -> PlanNode:
        """Return one node by id."""
        return self.by_id[node_id]

    def worked_on(self) -> Iterator[PlanNode]:
        """Yield every node, inside control nodes too, that a worker runs."""
        for node in self.nodes:
            if node.kind == "model":
                yield node
            for body in node.bodies.values():
                yield from body.worked_on()

    def feeds(self, *, root: bool = True, needed: bool = True) -> Iterator["Feed"]:
        """Yield every input of a node that is bound to an input of the run."""
        for node in self.nodes:
            for name, binding in node.bindings.items():
                if binding.output and (binding.node == RUN or (root and binding.node == RUN_INPUT)):
                    yield Feed(node, name, binding.output, needed and name not in node.optional)
            if node.kind == "graph":
                continue  # a workflow of its own has a `run` of its own
            for label, body in node.bodies.items():
                yield from body.feeds(
                    root=root and node.kind == "try", needed=needed and label == "body"
                )

    def run_inputs(self) -> dict[str, bool]:
        """Return the names of the inputs a run must bring (True) or may bring (False)."""
        names: dict[str, bool] = {}
        for feed in self.feeds():
            names[feed.source] = names.get(feed.source, False) or feed.required
        for name in self.mentioned:
            names.setdefault(name, False)
        return names


@dataclass(frozen=True)
class Feed:
    """An input of a node that an input of the run feeds."""

    node: PlanNode
    name: str
    source: str
    """The run's input."""
    required: bool
