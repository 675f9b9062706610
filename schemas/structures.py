"""What each kind of control node takes in its `params`."""

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError, model_validator

from schemas.errors import InvalidArgument
from schemas.expressions import CHARS_MAX
from schemas.ids import TOKEN, WorkflowName
from schemas.message import UserInput, expected
from schemas.workflow import WAIT_S_MAX, Node, NodeType, WorkflowDefinition, invalid


ITERATIONS_MAX = 100_000
PARALLEL_MAX = 256
VARIABLES_MAX = 64
SIGNAL_TIMEOUT_S = 7 * 86_400.0
HEADERS_MAX = 32
HEADER_CHARS_MAX = 4096
HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
HEADER_VALUE = re.compile(r"[\t\x20-\x7e]*")
RESERVED_HEADERS = frozenset(
    {
        *("host", "content-length", "transfer-encoding", "connection", "keep-alive", "upgrade"),
        *("te", "trailer", "expect", "accept-encoding", "proxy-connection", "proxy-authorization"),
    }
)
HTTP_INPUTS = ("url", "query", "headers", "body")

Formula = Annotated[str, Field(min_length=1, max_length=CHARS_MAX)]
"""An expression (`schemas.expressions`)."""
Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")]
Formulas = Annotated[dict[Name, Formula], Field(max_length=VARIABLES_MAX)]
GRAPHS = ("body", "catch", "finally")
Graph = dict[str, Any]
"""A graph of its own: `{"nodes": [...], "edges": [...]}`."""


class SetParams(UserInput):
    """`set`: computes values; its outputs have these names."""

    values: Annotated[Formulas, Field(min_length=1)]


class SwitchParams(UserInput):
    """`switch`: chooses a case; edges with another `case` are not taken."""

    on: Formula | None = None
    """Its value, a text, is the case."""
    cases: Formulas = Field(default_factory=dict)
    """The first of these that is true is the case; in the order they are written."""
    default: Annotated[str, Field(min_length=1, max_length=64)] = "default"
    """The case when nothing else fits."""

    @model_validator(mode="after")
    def _one_way(self) -> "SwitchParams":
        if (self.on is None) == (not self.cases):
            raise ValueError('give either "on" or "cases"')
        return self


class LoopParams(UserInput):
    """`loop`: runs its body again and again; the body's `input` holds the variables and `index`."""

    body: Graph
    init: Formulas = Field(default_factory=dict)
    """The variables of the first iteration."""
    while_: Formula | None = Field(default=None, alias="while")
    """Checked before each iteration, over its variables as `input`."""
    until: Formula | None = None
    """Checked after each iteration, over what its nodes gave; true ends the loop."""
    next: Formulas = Field(default_factory=dict)
    """The variables of the next iteration, over what this one's nodes gave; others are kept."""
    max_iterations: int = Field(default=100, ge=1, le=ITERATIONS_MAX)
    on_limit: Literal["fail", "stop"] = "fail"
    """What happens when `max_iterations` are through and the loop would go on."""

    @model_validator(mode="after")
    def _ends(self) -> "LoopParams":
        if self.while_ is None and self.until is None and self.on_limit == "fail":
            raise ValueError('give "while" or "until", or "on_limit": "stop"')
        return self


class ForeachParams(UserInput):
    """`foreach`: runs its body once for each item of a list."""

    items: Formula
    body: Graph
    as_: Name = Field(default="item", alias="as")
    """The name of the item in the body's `input`, beside `index`."""
    max_parallel: int = Field(default=16, ge=1, le=PARALLEL_MAX)
    """Iterations under way at the same time."""
    collect: Formula | None = None
    """What is kept of an iteration, over what its nodes gave; all its outputs by default."""
    until: Formula | None = None
    """Checked after each iteration; true begins no further one."""
    max_items: int = Field(default=10_000, ge=1, le=ITERATIONS_MAX)


class TryParams(UserInput):
    """`try`: a failure in its body is caught; `input.error` tells the catch which."""

    body: Graph
    catch: Graph | None = None
    finally_: Graph | None = Field(default=None, alias="finally")
    """Runs at the end, whatever happened: success, failure, cancellation."""

    @model_validator(mode="after")
    def _handles(self) -> "TryParams":
        if self.catch is None and self.finally_ is None:
            raise ValueError('give "catch" or "finally"')
        return self


class WorkflowParams(UserInput):
    """`workflow`: runs a deployed workflow as a part of this one, as it is at deploy."""

    workflow: WorkflowName
    version: int | None = Field(default=None, ge=1)


class DynamicParams(UserInput):
    """`dynamic`: runs a graph that another node gave."""

    graph: Formula
    """Its value is a definition, checked like any other."""
    max_nodes: int = Field(default=64, ge=1, le=256)


class DelayParams(UserInput):
    """`delay`: waits."""

    seconds: Annotated[
        Annotated[float, Field(ge=0, le=WAIT_S_MAX, strict=False)] | Formula | None,
        expected(f"a number of seconds up to {WAIT_S_MAX:g}, or an expression"),
    ] = None
    until: Formula | None = None
    """Its value is a time, seconds since the epoch."""

    @model_validator(mode="after")
    def _one_end(self) -> "DelayParams":
        if (self.seconds is None) == (self.until is None):
            raise ValueError('give either "seconds" or "until"')
        return self


class SignalParams(UserInput):
    """`signal`: waits until somebody sends a signal of this name to the run."""

    name: Annotated[str, Field(pattern=TOKEN)]
    default: Any = None
    """The payload when nobody did in time; without one the node fails."""


class EmitParams(UserInput):
    """`emit`: publishes its input `payload`, or all its inputs, on a subject of the tenant."""

    subject: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}(\.[A-Za-z0-9_-]{1,64}){0,15}$")]


class HttpParams(UserInput):
    """`http`: calls an address outside; private ones are refused.

    Its inputs, none of which binds by itself: `url`, `query`, `headers`, `body`.
    """

    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] = "GET"
    url: Annotated[str, Field(max_length=2048)] = ""
    """Where to; or else the input `url`."""
    headers: Annotated[dict[str, str], Field(max_length=HEADERS_MAX)] = Field(default_factory=dict)
    """Those of the input `headers` win. `Idempotency-Key` is set unless you do."""
    accept: Annotated[tuple[Annotated[int, Field(ge=100, le=599)], ...], Field(max_length=32)] = (
        Field(default=(), strict=False)
    )
    """Statuses that are no failure, beside 200 to 299."""

    @model_validator(mode="after")
    def _fits(self) -> "HttpParams":
        for name, value in self.headers.items():
            check_header(name, value)
        if self.url and not self.url.lower().startswith(("http://", "https://")):
            raise ValueError("a url begins with http:// or https://")
        if "@" in self.url.partition("://")[2].partition("/")[0]:
            raise ValueError("a url carries no credentials; send a header instead")
        return self


def check_header(name: str, value: str) -> str:
    """Return the value of a header that may be sent.

    Raises:
        ValueError: It is malformed, or not the sender's to choose.
    """
    if not HEADER_NAME.fullmatch(name):
        raise ValueError(f"'{name[:64]}' is no name of a header")
    if name.lower() in RESERVED_HEADERS:
        raise ValueError(f"the header {name} is set by the call itself")
    if len(value) > HEADER_CHARS_MAX or not HEADER_VALUE.fullmatch(value):
        raise ValueError(
            f"the value of header {name} is no line of at most {HEADER_CHARS_MAX} characters"
        )
    return value


PARAMS: dict[NodeType, type[UserInput]] = {
    "set": SetParams,
    "switch": SwitchParams,
    "loop": LoopParams,
    "foreach": ForeachParams,
    "try": TryParams,
    "workflow": WorkflowParams,
    "dynamic": DynamicParams,
    "delay": DelayParams,
    "signal": SignalParams,
    "emit": EmitParams,
    "http": HttpParams,
}
"""What each kind of control node takes."""


def every_node(document: Any) -> Iterator[tuple[object, dict[str, Any]]]:
    """Yield type and params of every node of a definition, of graphs inside nodes too.

    Args:
        document: A definition, or a graph as JSON types that nobody has checked.
    """
    nodes = document.nodes if isinstance(document, WorkflowDefinition) else document.get("nodes")
    for node in nodes if isinstance(nodes, list | tuple) else ():
        known = node if isinstance(node, dict) else vars(node) if isinstance(node, Node) else {}
        params = known.get("params")
        params = params if isinstance(params, dict) else {}
        yield known.get("type"), params
        for graph in (*(params.get(name) for name in GRAPHS), known.get("compensate")):
            if isinstance(graph, dict):
                yield from every_node(graph)


def workflows_named(document: Any) -> Iterator[str]:
    """Yield `name` or `name@version` of every workflow that a definition's nodes name."""
    for kind, params in every_node(document):
        if kind == "workflow":
            yield reference(params.get("workflow"), params.get("version"))


def reference(name: object, version: object) -> str:
    """Return the key of a workflow that a node names: `name` or `name@version`."""
    return f"{name}" if version is None else f"{name}@{version}"


P = TypeVar("P", bound=UserInput)


def read_params(kind: type[P], params: dict[str, Any], where: str) -> P:
    """Return the parameters of a control node.

    Raises:
        InvalidArgument: Names the parameter below `where`.
    """
    try:
        return kind.model_validate(params)
    except ValidationError as error:
        wrong = invalid(error)
        path = f"{where}.{wrong.field}" if wrong.field else where
        raise InvalidArgument(wrong.message, field=path) from error
