"""The workflows that simulated clients run, and what each gives."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from events.definitions import DeployedWorkflow
from schemas.catalogue import load
from schemas.messages import Control
from tests.support.sim.seams import CATALOGUE
from tests.support.workflows import compiled, echo_chain


MOODY = {"model": "moody", "refuses": 0.3}
RETRY = {"max_attempts": 10, "initial_delay_s": 0.2, "max_delay_s": 1.0, "jitter": 0.5}


def _moody(name: str, **more: Any) -> dict[str, Any]:
    return {"id": name, "type": "model", "params": MOODY, "timeout_s": 2, "retry": RETRY, **more}


def _echo(name: str, **more: Any) -> dict[str, Any]:
    return {"id": name, "type": "model", "params": {"model": "echo"}, "timeout_s": 3, **more}


def _edge(source: str, target: str, **more: Any) -> dict[str, Any]:
    return {"source": source, "target": target, **more}


DEFINITIONS: dict[str, dict[str, Any]] = {
    "linear": echo_chain(3),
    "join": {
        "nodes": [
            _moody("a"),
            _echo("left"),
            _moody("right"),
            _echo("middle"),
            {
                "id": "all",
                "type": "template",
                "params": {"template": "{{left.text}}+{{middle.text}}+{{right.text}}"},
            },
        ],
        "edges": [
            _edge("a", "left"),
            _edge("a", "middle"),
            _edge("a", "right"),
            _edge("left", "all"),
            _edge("middle", "all"),
            _edge("right", "all"),
        ],
    },
    "failing": {
        "nodes": [
            _echo("a"),
            {
                "id": "b",
                "type": "model",
                "params": {"model": "moody", "breaks": 0.5},
                "timeout_s": 2,
                "retry": {"max_attempts": 2, "initial_delay_s": 0.1},
                "compensate": {"nodes": [_echo("undo", inputs={"text": "= 'undone'"})]},
            },
            _moody("c"),
        ],
        "edges": [_edge("a", "b"), _edge("b", "c")],
    },
    "timed": {
        "timeout_s": 60,
        "nodes": [
            {"id": "wait", "type": "delay", "params": {"seconds": 1.5}},
            _echo("after", inputs={"text": "input.text"}),
            {"id": "again", "type": "delay", "params": {"seconds": 0.7}},
        ],
        "edges": [_edge("wait", "after"), _edge("after", "again")],
    },
    "branch": {
        "nodes": [
            _echo("a"),
            {
                "id": "route",
                "type": "switch",
                "params": {"cases": {"long": "len(a.text) > 4"}, "default": "short"},
            },
            _moody("long", inputs={"text": "a.text"}),
            _echo("short", inputs={"text": "a.text"}),
            _echo("end", join="any", inputs={"text": "a.text"}),
        ],
        "edges": [
            _edge("a", "route"),
            _edge("a", "long"),
            _edge("a", "short"),
            _edge("a", "end", when="false"),
            _edge("route", "long", case="long"),
            _edge("route", "short", case="short"),
            _edge("long", "end"),
            _edge("short", "end"),
        ],
    },
    "each": {
        "nodes": [
            {
                "id": "each",
                "type": "foreach",
                "params": {
                    "items": "input.items",
                    "max_parallel": 2,
                    "body": {"nodes": [_moody("b", inputs={"text": "= input.item"})]},
                    "collect": "b.text",
                },
            }
        ]
    },
    "loop": {
        "nodes": [
            {
                "id": "loop",
                "type": "loop",
                "params": {
                    "while": "input.n < 3",
                    "init": {"n": "0"},
                    "next": {"n": "input.n + 1"},
                    "body": {"nodes": [_moody("b", inputs={"text": "= 'x' * input.n + 'y'"})]},
                },
            }
        ]
    },
    "guarded": {
        "nodes": [
            {
                "id": "guard",
                "type": "try",
                "params": {
                    "body": {
                        "nodes": [
                            {
                                "id": "risk",
                                "type": "model",
                                "params": {"model": "moody", "breaks": 0.6},
                                "timeout_s": 2,
                                "inputs": {"text": "input.text"},
                            }
                        ]
                    },
                    "catch": {"nodes": [_echo("mend", inputs={"text": "input.text"})]},
                    "finally": {"nodes": [_echo("tidy", inputs={"text": "= 'tidy'"})]},
                },
            },
            _echo("end", inputs={"text": "guard.text"}),
        ],
        "edges": [_edge("guard", "end")],
    },
    "asked": {
        "nodes": [
            _echo("a"),
            {"id": "ask", "type": "signal", "params": {"name": "go"}, "timeout_s": 300},
            _echo("b", inputs={"text": "= ask.payload"}),
        ],
        "edges": [_edge("a", "ask"), _edge("ask", "b")],
    },
    "called_off": {
        "nodes": [
            _echo("a", compensate={"nodes": [_echo("undo", inputs={"text": "= 'undone'"})]}),
            {"id": "wait", "type": "delay", "params": {"seconds": 20}},
            _echo("b", inputs={"text": "input.text"}),
        ],
        "edges": [_edge("a", "wait"), _edge("wait", "b")],
    },
    "telling": {
        "nodes": [
            _echo("a"),
            {
                "id": "tell",
                "type": "emit",
                "params": {"subject": "told"},
                "inputs": {"payload": "a.text"},
            },
        ],
        "edges": [_edge("a", "tell")],
    },
    "keyed": {
        "nodes": [_moody("a", concurrency={"key": "'all'", "limit": 1}), _echo("b")],
        "edges": [_edge("a", "b")],
    },
}
DEFINITIONS |= {
    f"{name}_ordered": {**DEFINITIONS[name], "mode": "ordered"}
    for name in ("linear", "join", "failing", "timed", "each")
}


@dataclass(frozen=True)
class Wish:
    """One run a client wants, and what it does to it while it runs."""

    workflow: str
    inputs: dict[str, Any]
    outputs: Mapping[str, Any] | None
    ends: frozenset[str] = frozenset({"completed"})
    controls: tuple[tuple[float, Control], ...] = ()
    """Seconds after the submission, and what is asked then."""


COMPLETED = frozenset({"completed"})
EITHER = frozenset({"completed", "failed"})


def _text(name: str) -> Callable[[str], dict[str, Any]]:
    return lambda text: {name: {"text": text}}


GIVES: dict[str, Callable[[str], Mapping[str, Any] | None]] = {
    "linear": _text("n2"),
    "join": lambda text: {"all": {"text": "+".join([text] * 3)}},
    "failing": _text("c"),
    "timed": lambda _: {"again": {}},
    "branch": _text("end"),
    "guarded": _text("end"),
    "asked": _text("b"),
    "called_off": _text("b"),
    "telling": lambda _: {"tell": {}},
    "keyed": _text("b"),
}


def wish(chance: random.Random) -> Wish:
    """Draw a run."""
    workflow = chance.choice(sorted(DEFINITIONS))
    text = "".join(chance.choices("abcdef", k=chance.randint(1, 8)))
    kind = workflow.removesuffix("_ordered")
    if kind == "each":
        items = [f"{text}{number}" for number in range(chance.randint(0, 5))]
        outputs = {"each": {"items": items, "count": len(items)}}
        return Wish(workflow, {"items": items}, outputs, EITHER)
    if workflow == "loop":
        return Wish(workflow, {}, None, EITHER)
    gives = GIVES[kind](text)
    after_s = chance.uniform(0.0, 4.0)
    if workflow == "asked":
        signal = Control(action="signal", name="go", id=text, payload=text)
        again = ((after_s + 0.5, signal),) if chance.random() < 0.5 else ()
        return Wish(workflow, {"text": text}, gives, EITHER, ((after_s, signal), *again))
    if workflow == "called_off":
        ends = frozenset({"completed", "cancelled", "failed"})
        return Wish(workflow, {"text": text}, gives, ends, ((after_s, Control(action="cancel")),))
    controls: tuple[tuple[float, Control], ...] = ()
    if chance.random() < 0.1:
        controls = (
            (after_s, Control(action="pause")),
            (after_s + chance.choice([0.0, 1.0]), Control(action="resume")),
        )
    return Wish(workflow, {"text": text}, gives, EITHER, controls)


@cache
def deployed(name: str) -> DeployedWorkflow:
    """Return a workload, compiled."""
    return compiled(name, DEFINITIONS[name], load(CATALOGUE))
