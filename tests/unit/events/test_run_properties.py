"""Whatever the graph and whatever happens, a run ends exactly once and replays exactly."""

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from events.catalog import (
    Event,
    NodeCompleted,
    NodeScheduled,
    RunCancelled,
    RunCompleted,
    RunFailed,
)
from events.commands import CancelRun, Command
from events.evolve import evolve, fold
from events.run import decide
from events.state import RunState
from schemas.plan import Plan, PlanNode
from tests.support.runs import AWAY, BROKEN, RETRY, answer, node, plan, start, tick


STEPS_MAX = 400
TERMINAL = RunCompleted | RunFailed | RunCancelled


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Draw a random acyclic plan."""
    nodes: list[PlanNode] = []
    for index in range(draw(st.integers(1, 8))):
        names = [item.id for item in nodes]
        sources = draw(st.lists(st.sampled_from(names), unique=True)) if names else []
        nodes.append(node(f"n{index}", *sources))
    return plan(*nodes)


@dataclass
class World:
    """A run with workers that answer in any order, twice, late, wrongly or never."""

    state: RunState | None = None
    log: list[Event] = field(default_factory=list)
    at: float = 0.0
    old: list[Command] = field(default_factory=list)

    def obey(self, command: Command) -> None:
        """Decide, record and remember for a later repetition."""
        over = self.state is not None and self.state.terminal
        happened = decide(self.state, command)
        assert not (over and happened), "something follows the end"
        for event in happened:
            self.state = evolve(self.state, event)
        self.log.extend(happened)
        self.old.append(command)

    def step(self, draw: st.DataObject, acts: list[str]) -> None:
        """Let one thing happen."""
        assert self.state is not None
        self.at += draw.draw(st.sampled_from([0.0, 0.5, 3.0]))
        act = draw.draw(st.sampled_from(acts))
        opened = self.state.open_nodes()
        if act == "repeat":
            self.obey(draw.draw(st.sampled_from(self.old)))
        elif act == "tick" or not opened:
            self.at = max(self.at, self.state.wake_at() or 0.0)
            self.obey(tick(self.at))
        else:
            node_id = draw.draw(st.sampled_from(opened))
            attempt = self.state.nodes[node_id].attempt
            error = {"ok": None, "away": AWAY, "broken": BROKEN}[act]
            self.obey(answer(node_id, attempt, at=self.at, error=error))


def check(world: World, of: Plan) -> None:
    """Check what holds for every finished run."""
    assert world.state is not None
    assert world.state == fold(world.log)
    assert 1 == sum(isinstance(event, TERMINAL) for event in world.log)
    assert isinstance(world.log[-1], TERMINAL)
    done: set[str] = set()
    attempts: dict[str, int] = {}
    for event in world.log:
        if isinstance(event, NodeScheduled):
            assert done.issuperset(of.node(event.node_id).sources), "began before its sources"
            assert attempts.get(event.node_id, 0) + 1 == event.attempt
            assert event.attempt <= RETRY.max_attempts
            attempts[event.node_id] = event.attempt
        elif isinstance(event, NodeCompleted):
            assert event.node_id not in done, "completed twice"
            done.add(event.node_id)
    if isinstance(world.log[-1], RunCompleted):
        assert {item.id for item in of.nodes} == done


@settings(deadline=None)
@given(plans(), st.data())
def test_every_run_ends_exactly_once(of: Plan, data: st.DataObject) -> None:
    """Failures, silence, repetitions and any order lead to one end and an exact replay."""
    world = World()
    world.obey(start(of))
    for _ in range(STEPS_MAX):
        assert world.state is not None
        if world.state.terminal:
            break
        world.step(data, ["ok", "ok", "ok", "ok", "away", "tick", "repeat", "broken"])
    if world.state is not None and not world.state.terminal:
        world.obey(CancelRun("enough", world.at))
    check(world, of)
    for late in tuple(world.old):
        world.obey(late)


@settings(deadline=None)
@given(plans(), st.data())
def test_good_workers_complete_every_run(of: Plan, data: st.DataObject) -> None:
    """When every worker answers, in whatever order, every node completes once."""
    world = World()
    world.obey(start(of))
    for _ in of.nodes:
        world.step(data, ["ok"])
    check(world, of)
    assert isinstance(world.log[-1], RunCompleted)
    assert world.state is not None
    assert set(of.outputs) == set(world.state.outputs or {})
