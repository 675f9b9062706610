"""Production code with one safeguard taken out: the checker must notice each."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import events.jetstream
import services.orchestrator.history
import services.orchestrator.runs
from events.catalog import Event
from events.commands import Advice, Command, RecordResult
from events.jetstream import commit_headers
from events.paths import ROOT, node_id_of, scope_of
from events.run import decided
from events.state import NodeState, RunState
from events.store import Append
from schemas.messages import Header
from services.consumer import Consumer, Letter
from services.orchestrator.app import Orchestrator
from services.orchestrator.backlog import Backlog
from services.runtime import Delivery, publish


def _unguarded(append: Append, version: int) -> dict[str, str]:
    """No optimistic concurrency: whoever appends last wins."""
    headers = commit_headers(append, version)
    del headers[Header.EXPECTED]
    return headers


def _unfenced(
    state: RunState | None, command: Command, advice: Advice
) -> tuple[list[Event], RunState | None]:
    """No fencing: a result counts, whichever attempt it is of."""
    if isinstance(command, RecordResult) and state is not None and not state.terminal:
        result = command.result
        node = state.node(result.node_id) if state.is_under_way(result.node_id) else None
        if node is not None and node.attempt != result.attempt:
            welcome = replace(node, rivals=(*node.rivals, result.attempt))
            state = _with_node(state, scope_of(result.node_id), result.node_id, welcome)
    return decided(state, command, advice)


def _with_node(state: RunState, scope: str, path: str, node: NodeState) -> RunState:
    nodes = {**state.nodes_of(scope), node_id_of(path): node}
    if scope == ROOT:
        return replace(state, nodes=nodes)
    changed = replace(state.scopes[scope], nodes=nodes)
    return replace(state, scopes={**state.scopes, scope: changed})


async def _hasty(consumer: Consumer, delivery: Delivery, letter: Letter) -> tuple[str, int]:
    """The ack before the commit: what is lost then is lost for good."""
    consumer._answer(letter.frame, b"+ACK")
    out = await consumer._handler(delivery)
    await publish(consumer._express, out)
    return "ok", len(out)


async def _anytime(*_: Any) -> bool:
    """Controls of one run in any order, and again."""
    return True


async def _as_they_came(*_: Any) -> bool:
    """No fair shares: submissions are taken up in the order in which they came."""
    return False


async def _blind(*_: Any) -> str:
    """No loss evidence: whatever the log says is believed."""
    return ""


MUTANTS: dict[str, tuple[Any, str, Any]] = {
    "optimistic concurrency": (events.jetstream, "commit_headers", _unguarded),
    "fencing": (services.orchestrator.runs, "decided", _unfenced),
    "ack after commit": (Consumer, "_attempt", _hasty),
    "loss evidence": (services.orchestrator.history, "contradiction", _blind),
    "fair shares": (Backlog, "_look", _as_they_came),
    "controls in order": (Orchestrator, "_turn", _anytime),
}
"""What is missing, and what is put in its place."""


@contextmanager
def without(safeguard: str) -> Iterator[None]:
    """Take a safeguard out of the production code for a while."""
    owner, name, mutant = MUTANTS[safeguard]
    before = owner.__dict__[name]
    setattr(owner, name, mutant)
    try:
        yield
    finally:
        setattr(owner, name, before)
