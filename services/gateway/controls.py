"""What a client asks to be done to a run, checked against the run's log before it is stored.

The orchestrator decides; between this look and its decision the run may go on. So a refusal here is
certain, and an acceptance means that the wish was stored.
"""

import hashlib
from itertools import islice

from events.run import SIGNALS_MAX
from events.state import DECIDED, NodeState, RunState
from schemas.errors import InvalidArgument, NotFound, ResourceExhausted
from schemas.ids import new_id
from schemas.messages import Control
from services.errors import WrongState


ID_CHARS_MAX = 128
NODES_NAMED_MAX = 20
"""Nodes that an error lists."""


def with_id(command: Control, key: str | None) -> Control:
    """Return a signal with an id: its own, the client's idempotency key, or a new one.

    Raises:
        InvalidArgument: It has an id and another key.
    """
    if command.action != "signal":
        return command
    if key is not None and command.id and key != command.id:
        raise InvalidArgument("the signal has another id; send one of them", field="id")
    signal_id = command.id or key or new_id()
    if len(signal_id) > ID_CHARS_MAX:
        signal_id = hashlib.sha256(signal_id.encode()).hexdigest()
    return command.model_copy(update={"id": signal_id})


def is_done(state: RunState, command: Control) -> bool:
    """Tell whether a wish was fulfilled before, as when it is sent again after a lost answer."""
    match command.action:
        case "cancel":
            return state.status == "cancelled"
        case "signal":
            return command.id in state.signal_ids
        case _:
            return False


def check(state: RunState, command: Control) -> None:
    """Refuse what cannot be done to a run.

    Raises:
        WrongState: The run is over, or the node is in no state for it.
        NotFound: There is no such node, or none that is under way.
        ResourceExhausted: The run keeps too many signals already; retryable.
    """
    if state.terminal:
        raise WrongState(f"the run is over: it {_ended(state)}", field="run_id")
    match command.action:
        case "signal" if len(state.signals) >= SIGNALS_MAX:
            raise ResourceExhausted(
                f"the run keeps {SIGNALS_MAX} signals that no node has asked for", field="name"
            )
        case "skip":
            _check_skip(state, command.node)
        case "retry":
            _check_retry(state, command.node)
        case _:
            pass  # nothing else can stand against it


def _check_skip(state: RunState, path: str) -> None:
    node = _node(state, path)
    if node is not None and node.status in DECIDED:
        raise WrongState(f"node '{path}' is {node.status} already", field="node")


def _check_retry(state: RunState, path: str) -> None:
    node = _node(state, path)
    status = "pending" if node is None else node.status
    if status not in {"failed", "waiting"}:
        raise WrongState(
            f"node '{path}' is {status}; only one that failed, or that waits for its next "
            f"attempt, can be tried again",
            field="node",
        )


def _node(state: RunState, path: str) -> NodeState | None:
    """Return the state of a node under way; None if it has not begun."""
    if state.is_under_way(path):
        return state.node(path)
    known = [name for name, _ in islice(state.active(), NODES_NAMED_MAX)]
    raise NotFound(f"no node '{path}' is under way; there are: {', '.join(known)}", field="node")


def _ended(state: RunState) -> str:
    return "was cancelled" if state.status == "cancelled" else state.status
