"""Graphs step by step: control nodes, edges, and the definition they make."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self, TypedDict, Union

from pydantic import ValidationError
from typing_extensions import Unpack

from schemas.errors import InvalidArgument
from schemas.structures import PARAMS, read_params
from schemas.workflow import (
    Concurrency,
    Edge,
    Node,
    NodeType,
    Priority,
    RetryPolicy,
    WorkflowDefinition,
    invalid,
)


Graph = Union["GraphBuilder", WorkflowDefinition, Mapping[str, Any]]
"""A graph inside a node: a builder, a definition, or `{"nodes": [...], "edges": [...]}`."""


class NodeOptions(TypedDict, total=False):
    """What every node may have, whatever it does."""

    inputs: Mapping[str, str]
    """Explicit sources, `{"text": "asr.text"}`, `"input.question"` or `"= an expression"`."""
    timeout_s: float
    """Time for one attempt, or for the wait, seconds."""
    retry: RetryPolicy
    """How often and how patiently a failure is tried again."""
    join: Literal["all", "any"] | int
    """How many taken edges it waits for; `all` waits until every edge is decided."""
    compensate: Graph
    """Undoes it when the run fails or is cancelled later; sees `input.outputs`."""
    priority: Priority
    """Of its tasks: `high`, `normal`, `low`; the workflow's by default."""
    memo: bool | float
    """Take a result of before: a day old at most, or so many seconds; of http nodes."""
    concurrency: Concurrency
    """It waits until fewer than `limit` nodes of its key are under way."""


class GraphBuilder:
    """Builds a graph; every method returns the builder itself.

    Graphs inside nodes (the body of a loop, the catch of a try) are builders too. Expressions are
    texts in the language of docs/control-flow.md: `"asr.confidence > 0.8"`.
    """

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}
        self._edges: list[Edge] = []

    def set(self, node_id: str, values: Mapping[str, str], **options: Unpack[NodeOptions]) -> Self:
        """Compute values: `.set("order", {"total": "price.net * 1.2"})` gives `order.total`."""
        return self._control(node_id, "set", options, values=dict(values))

    def switch(
        self,
        node_id: str,
        *,
        cases: Mapping[str, str] | None = None,
        on: str | None = None,
        default: str | None = None,
        **options: Unpack[NodeOptions],
    ) -> Self:
        """Choose a case; `connect(node_id, target, case=...)` is taken only in that one.

        Args:
            node_id: The node; its output is `case`.
            cases: Expressions; the first that is true is the case.
            on: An expression whose value is the case, instead of `cases`.
            default: The case when nothing else fits; `default` by default.
            options: See `NodeOptions`.
        """
        chosen = None if cases is None else dict(cases)
        return self._control(node_id, "switch", options, cases=chosen, on=on, default=default)

    def loop(  # noqa: PLR0913 - one keyword for each thing a loop may have
        self,
        node_id: str,
        body: Graph,
        *,
        init: Mapping[str, str] | None = None,
        while_: str | None = None,
        until: str | None = None,
        next_: Mapping[str, str] | None = None,
        max_iterations: int | None = None,
        on_limit: Literal["fail", "stop"] | None = None,
        **options: Unpack[NodeOptions],
    ) -> Self:
        """Run a graph again and again; its `input` holds the variables and `index`.

        Args:
            node_id: The node; its outputs are the body's last, the variables and `iterations`.
            body: The graph.
            init: Expressions for the variables of the first iteration.
            while_: Checked before each iteration, over the variables.
            until: Checked after each iteration, over what its nodes gave; true ends the loop.
            next_: Expressions for the variables of the next iteration; others are kept.
            max_iterations: The bound; 100 by default.
            on_limit: Whether reaching the bound fails the node or merely stops the loop.
            options: See `NodeOptions`.
        """
        return self._control(
            node_id,
            "loop",
            options,
            body=document(body),
            init=None if init is None else dict(init),
            while_=while_,
            until=until,
            next_=None if next_ is None else dict(next_),
            max_iterations=max_iterations,
            on_limit=on_limit,
        )

    def foreach(  # noqa: PLR0913 - one keyword for each thing it may have
        self,
        node_id: str,
        items: str,
        body: Graph,
        *,
        as_: str | None = None,
        collect: str | None = None,
        until: str | None = None,
        max_parallel: int | None = None,
        max_items: int | None = None,
        **options: Unpack[NodeOptions],
    ) -> Self:
        """Run a graph once for each item of a list, several at the same time.

        Args:
            node_id: The node; its outputs are `items`, in the order of the list, and `count`.
            items: An expression that gives the list.
            body: The graph; its `input` holds the item and `index`.
            as_: What the item is called in there; `item` by default.
            collect: An expression for what is kept of an iteration; all its outputs by default.
            until: Checked after each iteration; true begins no further one.
            max_parallel: Iterations under way at the same time; 16 by default.
            max_items: The bound; 10 000 by default.
            options: See `NodeOptions`.
        """
        return self._control(
            node_id,
            "foreach",
            options,
            items=items,
            body=document(body),
            as_=as_,
            collect=collect,
            until=until,
            max_parallel=max_parallel,
            max_items=max_items,
        )

    def try_(
        self,
        node_id: str,
        body: Graph,
        *,
        catch: Graph | None = None,
        finally_: Graph | None = None,
        **options: Unpack[NodeOptions],
    ) -> Self:
        """Run a graph; `catch` runs when it fails and sees `input.error`, `finally_` always runs.

        The outputs are the body's, or the catch's and `error`.
        """
        return self._control(
            node_id,
            "try",
            options,
            body=document(body),
            catch=None if catch is None else document(catch),
            finally_=None if finally_ is None else document(finally_),
        )

    def workflow(
        self,
        node_id: str,
        workflow: str,
        *,
        version: int | None = None,
        **options: Unpack[NodeOptions],
    ) -> Self:
        """Run a deployed workflow as a part of this one; the version is fixed at deploy."""
        return self._control(node_id, "workflow", options, workflow=workflow, version=version)

    def dynamic(
        self,
        node_id: str,
        graph: str,
        *,
        max_nodes: int | None = None,
        **options: Unpack[NodeOptions],
    ) -> Self:
        """Run a graph that another node gave: `graph` is an expression for its definition."""
        return self._control(node_id, "dynamic", options, graph=graph, max_nodes=max_nodes)

    def delay(
        self,
        node_id: str,
        seconds: float | str | None = None,
        *,
        until: str | None = None,
        **options: Unpack[NodeOptions],
    ) -> Self:
        """Wait: some seconds, an expression for them, or one for a time since the epoch."""
        return self._control(node_id, "delay", options, seconds=seconds, until=until)

    def signal(
        self,
        node_id: str,
        *,
        name: str | None = None,
        default: Any = ...,
        **options: Unpack[NodeOptions],
    ) -> Self:
        """Wait until somebody sends the run a signal; its outputs are `payload`, `timed_out`.

        Args:
            node_id: The node.
            name: Of the signal; the node's id by default.
            default: The payload when none came within `timeout_s`; without one the node fails.
            options: See `NodeOptions`.
        """
        params = {} if default is ... else {"default": default}
        named = given(name=name or node_id)
        return self._add_checked(node_id, "signal", named | params, options)

    def emit(
        self,
        node_id: str,
        subject: str,
        *,
        payload: str | None = None,
        **options: Unpack[NodeOptions],
    ) -> Self:
        """Publish on a subject of the tenant; `payload` is a source such as `"asr.text"`."""
        if payload is not None:
            options = {**options, "inputs": {**options.get("inputs", {}), "payload": payload}}
        return self._control(node_id, "emit", options, subject=subject)

    def http(
        self,
        node_id: str,
        url: str | None = None,
        *,
        method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] | None = None,
        headers: Mapping[str, str] | None = None,
        accept: Sequence[int] | None = None,
        **options: Unpack[NodeOptions],
    ) -> Self:
        """Call an address outside; its outputs are `status`, `headers` and `body`.

        Args:
            node_id: The node.
            url: The address; or else the input `url`.
            method: GET by default.
            headers: Sent along; those of the input `headers` win.
            accept: Statuses that are no failure, beside 200 to 299.
            options: See `NodeOptions`; `inputs` may bring `url`, `query`, `headers` and `body`.
        """
        return self._control(
            node_id,
            "http",
            options,
            url=url,
            method=method,
            headers=None if headers is None else dict(headers),
            accept=None if accept is None else list(accept),
        )

    def connect(
        self, source: str, target: str, *, when: str | None = None, case: str | None = None
    ) -> Self:
        """Let data flow from one node to another.

        Args:
            source: Where from.
            target: Where to; it waits for all its sources, or as its `join` says.
            when: The edge is taken only if this expression is true.
            case: The edge is taken only if `source`, a switch, chose this case.

        Raises:
            InvalidArgument: One of the two does not exist.
        """
        for end in (source, target):
            if end not in self._nodes:
                known = ", ".join(self._nodes) or "none yet"
                raise InvalidArgument(f"no node '{end}'; add it first (there are: {known})")
        try:
            self._edges.append(Edge(source=source, target=target, when=when, case=case))
        except ValidationError as error:
            raise invalid(error) from error
        return self

    def definition(self) -> WorkflowDefinition:
        """Return the definition.

        Raises:
            InvalidArgument: No nodes, a repeated edge, or a cycle.
        """
        try:
            built = WorkflowDefinition(
                nodes=tuple(self._nodes.values()), edges=tuple(self._edges), **self._whole()
            )
        except ValidationError as error:
            raise invalid(error) from error
        built.check_graph()
        return built

    def _whole(self) -> dict[str, Any]:
        """Return what the definition says besides nodes and edges."""
        return {}

    def _control(self, node_id: str, kind: NodeType, options: NodeOptions, **params: Any) -> Self:
        """Add a control node; `while_` and the like lose their underscore, None is left out."""
        named = {name.rstrip("_"): value for name, value in given(**params).items()}
        return self._add_checked(node_id, kind, named, options)

    def _add_checked(
        self, node_id: str, kind: NodeType, params: dict[str, Any], options: NodeOptions
    ) -> Self:
        read_params(PARAMS[kind], params, f"{node_id}.params")
        return self._add(node_id, kind, params, dict(options))

    def _add(
        self, node_id: str, kind: NodeType, params: dict[str, Any], rest: dict[str, Any]
    ) -> Self:
        if node_id in self._nodes:
            raise InvalidArgument(f"node id '{node_id}' is used twice", field="node_id")
        if "compensate" in rest:
            rest = {**rest, "compensate": document(rest["compensate"])}
        if "inputs" in rest:
            rest = {**rest, "inputs": dict(rest["inputs"])}
        try:
            self._nodes[node_id] = Node(id=node_id, type=kind, params=params, **rest)
        except ValidationError as error:
            raise invalid(error) from error
        return self


def document(graph: Graph) -> dict[str, Any]:
    """Return a graph as JSON types, as it stands in a node's parameters.

    Raises:
        InvalidArgument: A builder's graph is empty or has a cycle.
    """
    if isinstance(graph, GraphBuilder):
        graph = graph.definition()
    if isinstance(graph, WorkflowDefinition):
        return graph.model_dump(mode="json", exclude_defaults=True)
    return dict(graph)


def given(**values: Any) -> dict[str, Any]:
    """Return the arguments that somebody gave."""
    return {name: value for name, value in values.items() if value is not None}
