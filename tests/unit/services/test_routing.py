"""What an orchestrator learns of the ways to do a node."""

from events.catalog import NodeCompleted, NodeFailed
from events.commands import Advice, StartRun
from events.evolve import fold
from events.run import decide
from schemas.catalogue import load
from schemas.compiler import compile_plan
from schemas.messages import Fault, Timings
from schemas.workflow import parse_definition
from services.orchestrator.routing import COOL_DOWN_S, FAILURES_OPEN, Routing
from services.orchestrator.runs import Decision
from tests.support.play import graph, model
from tests.support.runs import AWAY, BROKEN


def attempt(routing: Routing, *, now: float, fault: Fault | None = None) -> None:
    """Let a node with an alternative begin, then answer after 20 ms or fail."""
    node = model("a", alternatives=[{"model": "echo", "pool": "cloud"}])
    plan = compile_plan(parse_definition(graph(node)), load())
    command = StartRun("w", 1, "d", plan, {"text": "x"}, "i", "c", now)
    events = decide(None, command, Advice(health=routing.health(now)))
    state = fold(events)
    routing.observe(Decision(state, events), now)
    over = (
        NodeFailed(at=now + 0.02, node_id="a", attempt=1, error=fault)
        if fault
        else NodeCompleted(at=now + 0.02, node_id="a", attempt=1, outputs={}, model="echo",
                           worker="w", timings=Timings(queue_ms=5))
    )  # fmt: skip
    routing.observe(Decision(fold([over], state), [over]), now + 0.02)


def state_of(routing: Routing, now: float) -> str:
    """Return the state of the first way's circuit."""
    return routing.health(now)["default/echo"].state


def test_latency_and_errors_are_averaged() -> None:
    """From the decision to the answer."""
    routing = Routing()
    attempt(routing, now=0.0)
    figures = routing.health(1.0)["default/echo"]
    assert (1, 20.0, 5.0, 0.0) == (
        figures.answers,
        figures.latency_ms,
        figures.queue_ms,
        figures.error_rate,
    )


def test_failures_in_a_row_open_the_circuit_and_a_probe_closes_it() -> None:
    """Open sends nothing; half open one probe at a time; a failed probe waits twice as long."""
    routing = Routing()
    for number in range(FAILURES_OPEN):
        assert number == 0 or state_of(routing, 0.0) == "closed"
        attempt(routing, now=0.0, fault=AWAY)
    assert "open" == state_of(routing, COOL_DOWN_S - 1)
    later = COOL_DOWN_S + 1
    assert "half_open" == state_of(routing, later)
    attempt(routing, now=later, fault=AWAY)
    assert "open" == state_of(routing, later + 2 * COOL_DOWN_S - 1)
    later += 2 * COOL_DOWN_S + 1
    attempt(routing, now=later)
    assert "closed" == state_of(routing, later + 1)


def test_bad_input_says_nothing_of_the_way() -> None:
    """Only what a way could do better counts."""
    routing = Routing()
    innocent = BROKEN.model_copy(update={"code": "INVALID_ARGUMENT"})
    for _ in range(2 * FAILURES_OPEN):
        attempt(routing, now=0.0, fault=innocent)
    assert ("closed", 0.0) == (
        state_of(routing, 1.0),
        routing.health(1.0)["default/echo"].error_rate,
    )
