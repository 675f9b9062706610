"""What the orchestrator sends for a node that begins: a task, or an emitted message."""

import orjson

from events.chains import following
from events.paths import node_id_of, scope_of
from events.state import RunState
from events.subjects import RunKey, result, task, topic
from events.view import node_inputs
from schemas.messages import Header, Task, TaskResult, pack
from schemas.plan import adaptations
from schemas.values import to_json
from services.runtime import Outgoing


def emission_of(key: RunKey, state: RunState, path: str, trace: str) -> list[Outgoing]:
    """Return the message of an `emit` node, and the result that says it was sent."""
    planned, node = state.planned(path), state.nodes_of(scope_of(path))[node_id_of(path)]
    inputs = node_inputs(state, scope_of(path), planned)
    payload = inputs["payload"] if "payload" in planned.bindings else inputs
    headers = {
        Header.RUN_ID: key.run_id,
        Header.MSG_ID: f"{key.tenant}.{key.run_id}.{path}.{node.attempt}",
        Header.CE_ID: f"{key.run_id}.{path}.{node.attempt}",
        Header.CORRELATION_ID: state.correlation_id,
        Header.TRACEPARENT: trace,
        Header.CONTENT_TYPE: "application/json",
    }
    subject = topic(key.tenant, planned.params["subject"])
    body = orjson.dumps(to_json({"payload": payload})["payload"])
    sent = TaskResult(
        tenant=key.tenant,
        run_id=key.run_id,
        node_id=path,
        attempt=node.attempt,
        outputs={},
        model=planned.model,
        worker="",
    )
    return [
        Outgoing(subject, body, headers),
        Outgoing(result(key), pack(sent), _headers(key, state, path, node.attempt, trace)),
    ]


def task_of(key: RunKey, state: RunState, path: str, trace: str) -> Outgoing:
    """Return the task of a node, for the workers of the way that was chosen."""
    planned, node = state.planned(path), state.nodes_of(scope_of(path))[node_id_of(path)]
    route = planned.routes[node.route]
    then, seen = following(state, path)
    body = Task(
        tenant=key.tenant,
        run_id=key.run_id,
        node_id=path,
        attempt=node.attempt,
        model=route.model,
        params=route.params,
        inputs=node_inputs(state, scope_of(path), planned),
        scheduled_at=node.scheduled_at,
        deadline=node.deadline,
        memo_s=planned.memo_s,
        adapt=adaptations(planned.bindings),
        correlation_id=state.correlation_id,
        behind=state.plan.mode != "strong",
        then=then,
        seen=seen,
    )
    return Outgoing(
        task(key.tenant, route.modality, route.pool, planned.lane, route.model),
        pack(body),
        _headers(key, state, path, node.attempt, trace),
    )


def _headers(key: RunKey, state: RunState, path: str, attempt: int, trace: str) -> dict[str, str]:
    return {
        Header.MSG_ID: f"{key.tenant}.{key.run_id}.{path}.{attempt}",
        Header.CORRELATION_ID: state.correlation_id,
        Header.TRACEPARENT: trace,
    }
