"""The HTTP API as data: what to send for each operation and how to read the answer.

`Client` and `AsyncClient` differ only in how they carry a `Call` out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx
import orjson
from pydantic import ValidationError

from clawdbot.inputs import packed
from clawdbot.results import Run
from events.recording import MEDIA_TYPE
from schemas.api import (
    BlobView,
    ErrorBody,
    EventPage,
    EventView,
    ModelList,
    ModelView,
    NodePart,
    ProjectionsView,
    ProjectionView,
    RunPage,
    StatisticsView,
    WorkflowList,
    WorkflowView,
)
from schemas.errors import ClawdbotError, RetryableError, Unavailable, by_code
from schemas.forks import Fork
from schemas.ids import new_id
from schemas.messages import Control, Header
from schemas.submission import MSGPACK
from schemas.values import (
    BlobRef,
    Wire,
    to_json,
    to_wire,
)
from schemas.workflow import Deployment, invalid


T = TypeVar("T")
ATTEMPTS_MAX = 5
RETRY_DELAY_S = 0.5
RETRY_DELAY_MAX_S = 10.0
ANSWER_S = 30.0
"""Patience for an answer, on top of what the server was asked to wait."""
WAIT_S = 60.0
"""How long a run is waited for unless somebody says otherwise."""
STREAM_SILENCE_S = 45.0
PROJECT_S = 300.0
"""How long a gateway may take to read the whole log, by default."""
TERMINAL = {"RunCompleted", "RunFailed", "RunRejected", "RunCancelled"}
RETRYABLE = {429, 502, 503, 504}


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request and how to read its answer; sending it again is the same as sending it once."""

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    params: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    patience_s: float = ANSWER_S


def deploy(deployment: Deployment) -> Call[WorkflowView]:
    """Deploy a workflow."""
    body = orjson.dumps(deployment.model_dump(mode="json", exclude_defaults=True))
    headers = {"Content-Type": "application/json"}
    return Call("POST", "/v1/workflows", _model(WorkflowView), headers=headers, content=body)


def workflows() -> Call[tuple[WorkflowView, ...]]:
    """List workflows."""
    return Call("GET", "/v1/workflows", lambda answer: _model(WorkflowList)(answer).workflows)


def workflow(name: str, version: int | None) -> Call[WorkflowView]:
    """Show a workflow."""
    params = {} if version is None else {"version": version}
    return Call("GET", f"/v1/workflows/{quote(name, safe='')}", _model(WorkflowView), params)


def submit(name: str, wire: Wire, wait_s: float, idempotency_key: str | None) -> Call[Run]:
    """Start a run; its name, chosen here, makes it safe to send again after a lost answer."""
    return Call(
        "POST",
        f"/v1/workflows/{quote(name, safe='')}/runs",
        _model(Run),
        params={"wait": wait_s} if wait_s else {},
        headers={"Content-Type": MSGPACK, **named(None, idempotency_key)},
        content=packed(wire),
        patience_s=wait_s + ANSWER_S,
    )


def run(run_id: str) -> Call[Run]:
    """Show a run."""
    return Call("GET", _run_path(run_id), _model(Run))


def replay(run_id: str, until: int | None) -> Call[Run]:
    """Fold a run's log."""
    params = {} if until is None else {"until": until}
    return Call("GET", f"{_run_path(run_id)}/replay", _model(Run), params)


def export(run_id: str, *, blobs: bool) -> Call[bytes]:
    """Fetch a run as one file."""
    path = f"{_run_path(run_id)}/bundle"
    params = {"blobs": str(blobs).lower()}
    return Call("GET", path, lambda answer: answer.content, params, patience_s=120.0)


def import_bundle(bundle: bytes) -> Call[Run]:
    """Hand over a run as one file; again is the same as once."""
    headers = {"Content-Type": MEDIA_TYPE}
    return Call(
        "POST", "/v1/bundles", _model(Run), headers=headers, content=bundle, patience_s=120.0
    )


def fork(
    run_id: str,
    at: int | None,
    changes: Mapping[str, Any],
    version: int | None,
    *,
    wait_s: float,
    idempotency_key: str | None,
) -> Call[Run]:
    """Fork a run; its name, chosen here, makes it safe to send again after a lost answer.

    Raises:
        InvalidArgument: A field is wrong.
    """
    plain = to_json({path: to_wire(value) for path, value in changes.items()})
    try:
        wanted = Fork.model_validate({"at": at, "changes": plain, "version": version})
    except ValidationError as error:
        raise invalid(error) from error
    return Call(
        "POST",
        f"{_run_path(run_id)}/fork",
        _model(Run),
        params={"wait": wait_s} if wait_s else {},
        headers={"Content-Type": "application/json", **named(None, idempotency_key)},
        content=orjson.dumps(wanted.model_dump(exclude_defaults=True)),
        patience_s=wait_s + ANSWER_S,
    )


def runs(
    workflow_name: str | None, status: str | None, limit: int, cursor: str | None
) -> Call[RunPage]:
    """List runs."""
    wanted = {"workflow": workflow_name, "status": status, "limit": limit, "cursor": cursor}
    params = {name: value for name, value in wanted.items() if value is not None}
    return Call("GET", "/v1/runs", _model(RunPage), params)


def control(run_id: str, action: str, **details: Any) -> Call[None]:
    """Do something to a run.

    Args:
        run_id: The run.
        action: What to do.
        details: Other fields of `schemas.messages.Control`.

    Raises:
        InvalidArgument: A field is missing or wrong.
    """
    try:
        command = Control.model_validate({"action": action, **details})
    except ValidationError as error:
        raise invalid(error) from error
    body = orjson.dumps(command.model_dump(exclude_defaults=True))
    headers = {"Content-Type": "application/json"}
    return Call(
        "POST", f"{_run_path(run_id)}/control", lambda _: None, headers=headers, content=body
    )


def signal(run_id: str, name: str, payload: Any, signal_id: str | None) -> Call[None]:
    """Send a run a signal; its id, chosen here, makes it safe to send again."""
    return control(run_id, "signal", name=name, payload=payload, id=signal_id or new_id())


def skip(run_id: str, node: str, outputs: Mapping[str, Any] | None, reason: str) -> Call[None]:
    """Do without a node, or put its outputs in place of its work."""
    values = None
    if outputs is not None:
        values = to_json({name: to_wire(value) for name, value in outputs.items()})
    return control(run_id, "skip", node=node, outputs=values, reason=reason)


def events(run_id: str) -> Call[tuple[EventView, ...]]:
    """List a run's events."""
    return Call("GET", f"{_run_path(run_id)}/events", lambda a: _model(EventPage)(a).events)


def follow(run_id: str, after: int) -> Call[None]:
    """Follow a run's events."""
    headers = {"Accept": "text/event-stream", "Last-Event-ID": str(after)}
    return Call("GET", f"{_run_path(run_id)}/events", lambda _: None, headers=headers)


def stream(name: str, wire: Wire, names: Mapping[str, str]) -> Callable[[int], Call[None]]:
    """Start a run and follow it; called again with the last event seen, it goes on after that.

    Args:
        name: The workflow.
        wire: Inputs.
        names: What `named` gives.
    """
    content = packed(wire)

    def ask(after: int) -> Call[None]:
        return Call(
            "POST",
            f"/v1/workflows/{quote(name, safe='')}/runs",
            lambda _: None,
            headers={
                "Content-Type": MSGPACK,
                "Accept": "text/event-stream",
                "Last-Event-ID": str(after),
                **names,
            },
            content=content,
        )

    return ask


def put_blob(data: bytes, media_type: str) -> Call[BlobRef]:
    """Keep bytes; they are named by their content, so again is the same."""

    def read(answer: httpx.Response) -> BlobRef:
        return BlobRef.model_validate(_model(BlobView)(answer).model_dump())

    headers = {"Content-Type": media_type}
    return Call("POST", "/v1/blobs", read, headers=headers, content=data, patience_s=120.0)


def get_blob(sha256: str) -> Call[bytes]:
    """Fetch bytes."""
    path = f"/v1/blobs/{quote(sha256, safe='')}"
    return Call("GET", path, lambda answer: answer.content, patience_s=120.0)


def statistics(workflow_name: str | None) -> Call[StatisticsView]:
    """Count what nodes did."""
    params = {} if workflow_name is None else {"workflow": workflow_name}
    return Call(
        "GET", "/v1/statistics", _model(StatisticsView), params, patience_s=PROJECT_S + ANSWER_S
    )


def verify_projections() -> Call[tuple[ProjectionView, ...]]:
    """Have projections built anew and compared."""
    return Call(
        "POST",
        "/v1/projections/verify",
        lambda answer: _model(ProjectionsView)(answer).projections,
        patience_s=PROJECT_S + ANSWER_S,
    )


def models() -> Call[tuple[ModelView, ...]]:
    """List models."""
    return Call("GET", "/v1/models", lambda answer: _model(ModelList)(answer).models)


def check(answer: httpx.Response) -> None:
    """Raise the error that an answer carries.

    Raises:
        ClawdbotError: Of the kind the server named.
    """
    if answer.is_success:
        return
    try:
        fault = ErrorBody.model_validate_json(answer.content).error
    except ValidationError:
        text = f"{answer.url} answered {answer.status_code}; is this a clawdbot gateway?"
        raise Unavailable(text) from None
    kind = by_code().get(fault.code, ClawdbotError)
    context = {"request_id": fault.request_id, "run_id": fault.run_id}
    raise kind(fault.message, field=fault.field, **context)


def delay_before(attempt: int, answer: httpx.Response | None) -> float:
    """Return how long to wait before trying again, seconds; what the server says comes first."""
    own = min(RETRY_DELAY_S * 2**attempt, RETRY_DELAY_MAX_S)
    hint = answer.headers.get("Retry-After", "") if answer is not None else ""
    return min(float(hint), RETRY_DELAY_MAX_S) if hint.isdecimal() else own


def unreachable(url: str, error: httpx.TransportError) -> RetryableError:
    """Return the error for a server that cannot be reached."""
    if isinstance(error, httpx.TimeoutException):
        return Unavailable(f"{url} does not answer")
    return Unavailable(f"nobody answers at {url}; start the mesh with `clawdbot up`")


def with_data(line: str, event: dict[str, str]) -> EventView | NodePart | None:
    """Feed one line of an event stream; return the event, or the part, when it is complete.

    Source: HTML Standard, section 9.2.6.
    """
    if line:
        name, _, value = line.partition(":")
        if name in {"id", "event", "data"}:
            event[name] = value.removeprefix(" ")
        return None
    kind = NodePart if event.get("event") == "part" else EventView
    found = kind.model_validate_json(event["data"]) if "data" in event else None
    event.clear()
    return found


def request(
    http: httpx.Client | httpx.AsyncClient, call: Call[Any], patience_s: float | None = None
) -> httpx.Request:
    """Return the request that carries a call out."""
    return http.build_request(
        call.method,
        call.path,
        params=dict(call.params),
        headers=dict(call.headers),
        content=call.content,
        timeout=patience_s or call.patience_s,
    )


def named(run_id: str | None, idempotency_key: str | None) -> dict[str, str]:
    """Return the headers that name a run: what is given, or else a new id."""
    key = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
    if run_id is None and key:
        return key
    return {Header.RUN_ID: run_id or new_id(), **key}  # of both, the gateway says what is wrong


def _model(kind: type[Any]) -> Callable[[httpx.Response], Any]:
    return lambda answer: kind.model_validate_json(answer.content)


def _run_path(run_id: str) -> str:
    return f"/v1/runs/{quote(run_id, safe='')}"
