"""How long a run of 1,000 events takes to read and to fold, and how fast folding is."""

import statistics
import time
from typing import Any

from nats.aio.client import Client as Nats

from events.catalog import Event
from events.commands import CheckClock, Command, RecordResult, StartRun
from events.evolve import fold
from events.jetstream import JetStreamEventStore
from events.keys import JetStreamKeyRing
from events.run import decide
from events.state import RunState
from events.store import EMPTY, Append
from events.subjects import RunKey
from schemas.catalogue import load
from schemas.compiler import compile_plan
from schemas.ids import DEFAULT_TENANT, new_id
from schemas.messages import Fault, TaskResult
from schemas.plan import Plan
from schemas.workflow import parse_definition
from tests.support.workflows import echo_chain


NODES = 250
EVENTS = 1000
ROUNDS = 9
GOAL_MS = 100
AWAY = Fault(code="UNAVAILABLE", message="no worker", retryable=True)


def commits(plan: Plan) -> list[list[Event]]:
    """Return the commits of a chain of nodes that each fail once, as its orchestrator made them."""
    state: RunState | None = None
    made: list[list[Event]] = []

    def obey(command: Command) -> None:
        nonlocal state
        happened = list(decide(state, command))
        state = fold(happened, state)
        made.append(happened)

    obey(StartRun("chain", 1, "d", plan, {"text": "hi"}, "i", "c", 0.0))
    for number, node in enumerate(plan.nodes):
        at = float(number * 60)
        obey(RecordResult(_result(node.id, 1, error=AWAY), at))
        obey(CheckClock(at + 30))
        obey(RecordResult(_result(node.id, 2), at + 31))
    return made


def _result(node_id: str, attempt: int, error: Fault | None = None) -> TaskResult:
    return TaskResult(
        tenant=DEFAULT_TENANT,
        run_id="r",
        node_id=node_id,
        attempt=attempt,
        outputs=None if error else {"text": "hi"},
        error=error,
        model="echo",
        worker="text-1",
    )


async def measure(nc: Nats, master_key: bytes) -> list[dict[str, Any]]:
    """Append the run, then read and fold it again and again."""
    plan = compile_plan(parse_definition(echo_chain(NODES)), load())
    store = JetStreamEventStore(nc, JetStreamKeyRing(nc.jetstream(), master_key))
    key = RunKey(DEFAULT_TENANT, new_id())
    head, state = EMPTY, None
    for events in commits(plan):
        state = fold(events, state)
        assert state is not None
        head = await store.append(Append(key, new_id(), events, head, state))
    whole: list[float] = []
    folding: list[float] = []
    count = 0
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        history = await store.load(key)
        read = time.perf_counter()
        events = history.events()
        assert fold(events) == state
        count = len(events)
        whole.append(time.perf_counter() - begun)
        folding.append(time.perf_counter() - read)
    total_ms = statistics.median(whole) * 1000
    return [
        {
            "scenario": "replay",
            "events": count,
            "p50_ms": round(total_ms, 1),
            "fold_events_per_s": round(count / statistics.median(folding)),
            "goal": f"p50 < {GOAL_MS} ms",
            "met": count >= EVENTS and total_ms < GOAL_MS,
        }
    ]
