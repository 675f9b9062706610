"""The workflow a user writes: nodes and edges, exactly as the product's JSON has them."""

import hashlib
from collections import Counter
from operator import not_
from typing import Annotated, Any, Literal

import orjson
from pydantic import Field, ValidationError

from schemas.complaints import first_complaint
from schemas.errors import InvalidArgument
from schemas.expressions import CHARS_MAX
from schemas.ids import TOKEN, ModelName, NodeId, WorkflowName
from schemas.message import UserInput, expected


NODES_MAX = 256
EDGES_MAX = 1024
DEFINITION_BYTES_MAX = 256 * 1024
ATTEMPTS_MAX = 10
CRON = r"^(@every [1-9][0-9]{0,6}(s|m|h)|([0-9*/,A-Za-z-]+ ){4,5}[0-9*/,A-Za-z-]+)$"
CONCURRENCY_MAX = 1_000
MEMO_S = 86_400.0
MEMO_S_MAX = 7 * 86_400.0
"""How long results are kept for nodes with a `memo`."""
ATTEMPT_S_MAX = 3600.0
"""Time for an attempt of a worker."""
WAIT_S_MAX = 365 * 86_400.0
"""Time for a whole run, a wait, or a control node."""


ScheduleName = Annotated[str, Field(pattern=TOKEN)]


class RetryPolicy(UserInput):
    """How often and how patiently a failed node is tried again."""

    max_attempts: int = Field(default=3, ge=1, le=ATTEMPTS_MAX)
    """Attempts in all, the first one counted."""
    initial_delay_s: float = Field(default=0.5, ge=0, le=3600, strict=False)
    """Wait before the second attempt."""
    max_delay_s: float = Field(default=30.0, ge=0, le=3600, strict=False)
    backoff: Literal["fixed", "linear", "exponential"] = Field(
        default="exponential", exclude_if=lambda backoff: backoff == "exponential"
    )
    """How the wait grows: not at all, by `initial_delay_s` each time, or twofold each time."""
    jitter: float = Field(default=0.0, ge=0, le=1, strict=False, exclude_if=not_)
    """The part of each wait that is random: 0.2 waits 80 to 100% of it."""
    codes: tuple[str, ...] = Field(default=(), max_length=16, strict=False, exclude_if=not_)
    """Error codes to try again after; by default those that are marked retryable."""

    def delay_s(self, attempt: int, noise: float) -> float:
        """Return the wait after a failed attempt, seconds.

        Args:
            attempt: Which attempt failed, from 1.
            noise: A random number in [0, 1).
        """
        growth = {"fixed": 1, "linear": attempt, "exponential": 1 << attempt - 1}[self.backoff]
        return min(self.initial_delay_s * growth, self.max_delay_s) * (1 - self.jitter * noise)

    def retries(self, code: str, *, retryable: bool) -> bool:
        """Tell whether an error is worth another attempt."""
        return code in self.codes if self.codes else retryable


NodeType = Literal[
    "model",
    "template",
    "set",
    "switch",
    "loop",
    "foreach",
    "try",
    "workflow",
    "dynamic",
    "delay",
    "signal",
    "emit",
    "http",
]


ATTEMPTED: frozenset[NodeType] = frozenset({"model", "template", "http", "emit"})
"""Types whose `timeout_s` is for one attempt."""


class Concurrency(UserInput):
    """How many nodes of one key may be under way at once, in all runs of the tenant."""

    key: Annotated[str, Field(min_length=1, max_length=CHARS_MAX)]
    """An expression; its value, a text or a number, names the group: `"input.customer"`."""
    limit: int = Field(default=1, ge=1, le=CONCURRENCY_MAX)


Priority = Literal["high", "normal", "low"]
"""Which tasks go first where workers are short."""


class Alternative(UserInput):
    """Another way to do what a model node does."""

    model: ModelName
    """Of the same inputs and outputs."""
    pool: Annotated[str, Field(pattern=TOKEN)] | None = None
    """Whose workers take it; the node's own by default."""
    params: dict[str, Any] = Field(default_factory=dict)


class Node(UserInput):
    """One step of a graph."""

    id: NodeId
    type: NodeType
    params: dict[str, Any] = Field(default_factory=dict)
    """What the type needs: see `schemas.structures` and docs/workflows.md."""
    inputs: dict[str, str] = Field(default_factory=dict)
    """Explicit sources, `input name -> "node.output"`, `"input.name"` or `"= an expression"`; the
    rest is matched by name, then by kind, along the edges."""
    timeout_s: float | None = Field(default=None, gt=0, le=WAIT_S_MAX, strict=False)
    """Time for an attempt, an hour at most where a worker does it; of a control node, for all of
    it."""
    retry: RetryPolicy = RetryPolicy()
    join: Annotated[
        Literal["all", "any"] | Annotated[int, Field(ge=1, le=EDGES_MAX)],
        expected(f"all, any or a number from 1 to {EDGES_MAX}"),
    ] = "all"
    """When to begin: `all` waits until every incoming edge is decided and needs one that is taken,
    `any` begins with the first taken edge, a number with that many."""
    compensate: dict[str, Any] | None = None
    """A graph that undoes this node when the run fails or is cancelled after it completed."""
    pool: Annotated[str, Field(pattern=TOKEN)] | None = None
    """Whose workers take it, of a model node; `default` by default."""
    alternatives: tuple[Alternative, ...] = Field(default=(), max_length=8, strict=False)
    """Other models or pools that may do it, best first; the node's own comes before them."""
    prefer: Literal["order", "fastest"] = "order"
    """Among the ways that are well: the first, or the one that answers soonest."""
    priority: Priority | None = None
    """Of its tasks; the workflow's by default."""
    memo: Annotated[
        bool | Annotated[float, Field(gt=0, le=MEMO_S_MAX, strict=False)],
        expected(f"true, or a number of seconds up to {MEMO_S_MAX:g}"),
    ] = False
    """Take the result of an earlier attempt of the same model with the same inputs and parameters,
    a day old at most, or as old as this says, seconds."""
    concurrency: Concurrency | None = None
    """It waits until fewer than `limit` nodes of its key are under way."""
    hedge_after_s: float | None = Field(default=None, gt=0, le=3600, strict=False)
    """Ask another way as well when there is no answer after this long, and take the first answer;
    only for nodes that may run twice."""


class Edge(UserInput):
    """Data flows from `source` to `target`; `target` waits for all its sources."""

    source: NodeId
    target: NodeId
    when: Annotated[str, Field(max_length=CHARS_MAX)] | None = None
    """The edge is taken only if this expression is true."""
    case: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """The edge is taken only if its source, a switch, chose this case."""


Mode = Literal["strong", "ordered", "eventual"]


class WorkflowDefinition(UserInput):
    """A directed acyclic graph of nodes; loops and branches are nodes with graphs of their own."""

    nodes: tuple[Node, ...] = Field(min_length=1, max_length=NODES_MAX, strict=False)
    edges: tuple[Edge, ...] = Field(default=(), max_length=EDGES_MAX, strict=False)
    timeout_s: float | None = Field(default=None, gt=0, le=WAIT_S_MAX, strict=False)
    """Time for a whole run; past it the run fails. Of the outermost graph only."""
    mode: Mode = "strong"
    """What is stored before its effects: in `strong` mode every decision; in `ordered` mode a
    decision and its effects go out together, and what led to it is kept until it is stored; in
    `eventual` mode the log follows behind. Of the outermost graph only."""
    on_failure: Literal["fail", "pause"] = "fail"
    """What a node that failed for good does to the run: end it, or pause it until somebody retries
    or skips the node. Of the outermost graph only."""
    priority: Priority = "normal"
    """Of the tasks of all its nodes. Of the outermost graph only."""

    def digest(self) -> str:
        """SHA-256 over the canonical JSON: sorted keys, no spaces, defaults left out."""
        document = self.model_dump(mode="json", exclude_defaults=True)
        return hashlib.sha256(orjson.dumps(document, option=orjson.OPT_SORT_KEYS)).hexdigest()

    def check_graph(self) -> list[str]:
        """Return the node ids in topological order.

        Raises:
            InvalidArgument: Duplicate id, dangling or repeated edge, self edge, cycle, or an
                attempt without end; names the offending node or edge.
        """
        ids = [node.id for node in self.nodes]
        for node_id, count in Counter(ids).items():
            if count > 1:
                where = f"nodes[{len(ids) - 1 - ids[::-1].index(node_id)}].id"
                raise InvalidArgument(f"node id '{node_id}' is used twice", field=where)
        self._check_times()
        self._check_edges(set(ids))
        return self._topological_order()

    def _check_times(self) -> None:
        for index, node in enumerate(self.nodes):
            if node.type in ATTEMPTED and (node.timeout_s or 0) > ATTEMPT_S_MAX:
                raise InvalidArgument(
                    f"an attempt of a {node.type} node has at most {ATTEMPT_S_MAX:g} seconds",
                    field=f"nodes[{index}].timeout_s",
                )

    def _check_edges(self, known: set[str]) -> None:
        seen: set[tuple[str, str]] = set()
        for index, edge in enumerate(self.edges):
            for end in ("source", "target"):
                if getattr(edge, end) not in known:
                    raise InvalidArgument(
                        f"edge {edge.source} -> {edge.target}: no node '{getattr(edge, end)}'",
                        field=f"edges[{index}].{end}",
                    )
            if edge.source == edge.target:
                raise InvalidArgument(
                    f"node '{edge.source}' cannot feed itself", field=f"edges[{index}]"
                )
            if (edge.source, edge.target) in seen:
                raise InvalidArgument(
                    f"edge {edge.source} -> {edge.target} is there twice", field=f"edges[{index}]"
                )
            seen.add((edge.source, edge.target))

    def _topological_order(self) -> list[str]:
        waiting = {node.id: 0 for node in self.nodes}
        targets: dict[str, list[str]] = {node.id: [] for node in self.nodes}
        for edge in self.edges:
            waiting[edge.target] += 1
            targets[edge.source].append(edge.target)
        order = [node_id for node_id, count in waiting.items() if count == 0]
        for node_id in order:
            for target in targets[node_id]:
                waiting[target] -= 1
                if waiting[target] == 0:
                    order.append(target)
        if len(order) < len(waiting):
            stuck = sorted(set(waiting) - set(order))
            raise InvalidArgument(
                f"the edges form a cycle through {', '.join(stuck)}", field="edges"
            )
        return order


class Schedule(UserInput):
    """Starts a run again and again."""

    cron: Annotated[str, Field(pattern=CRON)]
    """`*/5 * * * *`, with a sixth field for seconds in front if you like, or `@every 30s`; UTC."""
    inputs: dict[str, Any] = Field(default_factory=dict)
    """Of each run."""

    def expression(self) -> str:
        """Return it as the server wants it: six fields, or `@every`."""
        return f"0 {self.cron}" if len(self.cron.split()) == 5 else self.cron  # noqa: PLR2004


class Trigger(UserInput):
    """Starts a run for each message on a subject of the tenant."""

    subject: Annotated[
        str, Field(pattern=r"^[A-Za-z0-9_*-]{1,64}(\.[A-Za-z0-9_*-]{1,64}){0,15}(\.>)?$")
    ]
    """Below `clawdbot.v1.<tenant>.topic.`; `*` is any token, `>` any rest."""
    inputs: Annotated[dict[str, str], Field(max_length=64)] = Field(default_factory=dict)
    """By name, as expressions over `event`: its `subject`, `id` and `payload`. By default the
    payload, an object, holds the inputs."""


class Deployment(UserInput):
    """A definition under a name."""

    name: WorkflowName
    definition: WorkflowDefinition
    replicas: Annotated[int, Field(ge=1, le=64)] = 1
    """Desired worker processes for each pool the workflow uses."""
    schedules: Annotated[dict[ScheduleName, Schedule], Field(max_length=16)] = Field(
        default_factory=dict
    )
    triggers: Annotated[dict[ScheduleName, Trigger], Field(max_length=16)] = Field(
        default_factory=dict
    )


def parse_definition(document: object) -> WorkflowDefinition:
    """Validate a definition that came as JSON types.

    Raises:
        InvalidArgument: Names the offending node, edge or field.
    """
    try:
        definition = WorkflowDefinition.model_validate(document)
    except ValidationError as error:
        raise invalid(error) from error
    definition.check_graph()
    return definition


def invalid(error: ValidationError) -> InvalidArgument:
    """Turn pydantic's first complaint into ours: `nodes[2].params` and what to do."""
    loc, message = first_complaint(error)
    where = ""
    for part in loc:
        where += f"[{part}]" if isinstance(part, int) else f".{part}" if where else str(part)
    return InvalidArgument(message, field=where or None)
