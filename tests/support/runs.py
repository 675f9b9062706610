"""Plans, commands and events for tests of runs."""

from events.catalog import Event
from events.commands import CheckClock, Command, RecordResult, StartRun
from events.evolve import evolve
from events.run import decide
from events.state import RunState
from schemas.messages import Fault, TaskResult, Timings
from schemas.plan import RUN_INPUT, Binding, Plan, PlanNode
from schemas.values import Wire
from schemas.workflow import RetryPolicy


TIMEOUT_S = 10.0
RETRY = RetryPolicy(max_attempts=3, initial_delay_s=1.0, max_delay_s=30.0)
AWAY = Fault(code="UNAVAILABLE", message="no worker", retryable=True)
BROKEN = Fault(code="INTERNAL", message="cannot compute", retryable=False)


def node(node_id: str, *sources: str, retry: RetryPolicy = RETRY) -> PlanNode:
    """Return a node that reads `text` of each source, or the run's `text`."""
    bindings = {name: Binding(node=name, output="text") for name in sources}
    return PlanNode(
        id=node_id,
        model="echo",
        modality="text",
        sources=sources,
        bindings=bindings or {"text": Binding(node=RUN_INPUT, output="text")},
        timeout_s=TIMEOUT_S,
        retry=retry,
    )


def plan(*nodes: PlanNode) -> Plan:
    """Return a plan whose outputs are its sinks."""
    feeding = {source for item in nodes for source in item.sources}
    return Plan(nodes=nodes, outputs=tuple(n.id for n in nodes if n.id not in feeding))


def start(of: Plan, *, at: float = 0.0, inputs: Wire | None = None) -> StartRun:
    """Return the command that starts a run of a plan."""
    return StartRun(
        workflow="w",
        version=1,
        digest="d",
        plan=of,
        inputs={"text": "hi"} if inputs is None else inputs,
        inputs_digest="i",
        correlation_id="c",
        at=at,
    )


def answer(
    node_id: str, attempt: int = 1, *, at: float, error: Fault | None = None
) -> RecordResult:
    """Return a worker's answer: an error, or the node's id as text."""
    result = TaskResult(
        tenant="default",
        run_id="r",
        node_id=node_id,
        attempt=attempt,
        outputs=None if error else {"text": node_id},
        error=error,
        model="echo",
        worker="text-1",
        timings=Timings(compute_ms=1.0),
    )
    return RecordResult(result, at)


def tick(at: float) -> CheckClock:
    """Return the command that says what time it is."""
    return CheckClock(at)


def given(*commands: Command) -> tuple[RunState, list[Event]]:
    """Obey commands in order; return the state and everything that happened."""
    state: RunState | None = None
    happened: list[Event] = []
    for command in commands:
        for event in decide(state, command):
            state = evolve(state, event)
            happened.append(event)
    assert state is not None, "the first command starts the run"
    return state, happened


def label(event: Event) -> str:
    """Return an event in words: `NodeScheduled a 1`, so that tests read."""
    what = getattr(event, "node_id", "") or getattr(event, "scope", "")
    facts = [type(event).__name__, what, getattr(event, "attempt", "")]
    return " ".join(str(fact) for fact in facts if fact != "")


def brief(events: list[Event]) -> list[str]:
    """Return events in words."""
    return [label(event) for event in events]
