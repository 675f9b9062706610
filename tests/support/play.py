"""Plays a workflow from definition to end: workers are functions, time is set by hand."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from events.catalog import Event
from events.commands import Advice, CheckClock, Command, ExpandNode, RecordResult, StartRun
from events.evolve import evolve
from events.paths import scope_of
from events.run import decided
from events.state import RunState
from events.view import evaluate, node_inputs
from schemas.catalogue import load
from schemas.compiler import compile_plan
from schemas.errors import ClawdbotError
from schemas.messages import Fault, TaskResult
from schemas.workflow import WorkflowDefinition, parse_definition
from tests.support.runs import label


STEPS_MAX = 200_000
Worker = Callable[[str, dict[str, Any]], Mapping[str, Any] | Fault | None]
"""Takes a node's path and inputs; gives outputs, a fault, or None to stay silent."""


def echo(_: str, inputs: dict[str, Any]) -> dict[str, Any]:
    """Give back the inputs, as `echo` does with its text."""
    return inputs


def graph(*nodes: dict[str, Any], edges: str = "", **rest: Any) -> dict[str, Any]:
    """Return a definition; `edges="a>b b>c"`."""
    pairs = [pair.split(">") for pair in edges.split()]
    return {
        "nodes": list(nodes),
        "edges": [{"source": left, "target": right} for left, right in pairs],
        **rest,
    }


def model(node_id: str, text: str = "", **rest: Any) -> dict[str, Any]:
    """Return an echo node, fed by an expression if one is given."""
    inputs = {"inputs": {"text": f"= {text}"}} if text else {}
    return {"id": node_id, "type": "model", "params": {"model": "echo"}, **inputs, **rest}


def control(node_id: str, kind: str, **params: Any) -> dict[str, Any]:
    """Return a control node; `while_` and the like lose their underscore."""
    named = {name.rstrip("_"): value for name, value in params.items()}
    return {"id": node_id, "type": kind, "params": named}


@dataclass
class Play:
    """A run under way.

    Args:
        definition: The workflow.
        worker: What workers do.
        workflows: What its `workflow` nodes may name.
    """

    definition: Mapping[str, Any]
    worker: Worker = echo
    workflows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    at: float = 0.0
    state: RunState | None = None
    log: list[Event] = field(default_factory=list)
    silent: set[tuple[str, int]] = field(default_factory=set)
    emitted: list[tuple[str, Any]] = field(default_factory=list)

    def start(self, **inputs: Any) -> "Play":
        """Start the run."""
        plan = compile_plan(parse_definition(self.definition), load(), self._workflows())
        self.obey(StartRun("w", 1, "d", plan, inputs, "i", "c", self.at))
        return self

    def obey(self, command: Command) -> list[Event]:
        """Decide a command; return what happened, which folds to the state that was decided."""
        happened, after = decided(self.state, command, Advice())
        for event in happened:
            self.state = evolve(self.state, event)
        assert after == self.state
        self.log += happened
        return happened

    def run(self, *, clock: bool = True, **inputs: Any) -> RunState:
        """Start, and let everybody work to the end."""
        if self.state is None:
            self.start(**inputs)
        self.work(clock=clock)
        assert self.state is not None
        return self.state

    def work(self, *, clock: bool = True) -> None:
        """Let workers, and the clock unless it stands still, do what they can."""
        for _ in range(STEPS_MAX):
            assert self.state is not None
            if self.state.terminal:
                return
            waiting = [path for path in self.state.open_nodes() if not self._is_silent(path)]
            if waiting:
                self._answer(waiting[0])
                continue
            wake = self.state.wake_at()
            if wake is None or not clock:
                return
            self.at = max(self.at, wake)
            if not self.obey(CheckClock(self.at)):
                return
        raise AssertionError("the run does not end")

    def brief(self) -> list[str]:
        """Return what happened, an event a word or two."""
        return [label(event) for event in self.log]

    def _is_silent(self, path: str) -> bool:
        assert self.state is not None
        node = self.state.node(path)
        return node is None or (path, node.attempt) in self.silent

    def _answer(self, path: str) -> None:
        assert self.state is not None
        planned, node = self.state.planned(path), self.state.node(path)
        assert node is not None
        if planned.kind == "dynamic":
            self._expand(path, node.attempt)
            return
        inputs = node_inputs(self.state, scope_of(path), planned)
        outputs: Mapping[str, Any] | Fault | None = {}
        if planned.kind == "emit":
            self.emitted.append((planned.params["subject"], inputs))
        else:
            outputs = self.worker(path, inputs)
        if outputs is None:
            self.silent.add((path, node.attempt))
            return
        fault = outputs if isinstance(outputs, Fault) else None
        result = TaskResult(
            tenant="default",
            run_id="r",
            node_id=path,
            attempt=node.attempt,
            outputs=None if isinstance(outputs, Fault) else dict(outputs),
            error=fault,
            model=planned.model,
            worker="w",
        )
        self.obey(RecordResult(result, self.at))

    def _expand(self, path: str, attempt: int) -> None:
        assert self.state is not None
        formula = self.state.planned(path).params["formulas"]["graph"]
        plan, fault = None, None
        try:
            document = evaluate(self.state, scope_of(path), formula)
            plan = compile_plan(parse_definition(document), load(), self._workflows())
        except ClawdbotError as error:
            fault = Fault.of(error)
        self.obey(ExpandNode(path, attempt, plan, fault, self.at))

    def _workflows(self) -> dict[str, WorkflowDefinition]:
        return {name: parse_definition(item) for name, item in self.workflows.items()}
