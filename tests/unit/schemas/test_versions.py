"""Which version a plan names, inside of control nodes too."""

from typing import Any

from schemas import catalogue
from schemas.catalogue import Catalogue
from schemas.compiler import compile_plan
from schemas.live_catalogue import LiveCatalogue
from schemas.plan import Plan
from schemas.repository import ModelRecord, ModelVersion, Push
from schemas.versions import as_before
from schemas.workflow import parse_definition
from services.orchestrator.versions import Versions


ECHO = catalogue.load().models["echo"]
GRAPH: dict[str, Any] = {
    "nodes": [
        {"id": "a", "type": "model", "params": {"model": "mine"}},
        {
            "id": "each",
            "type": "foreach",
            "params": {
                "items": "input.items",
                "as": "text",
                "body": {
                    "nodes": [
                        {
                            "id": "b",
                            "type": "model",
                            "params": {"model": "echo"},
                            "alternatives": [{"model": "mine"}],
                        }
                    ]
                },
            },
        },
    ]
}


def live(versions: int) -> LiveCatalogue:
    """Return a catalogue whose model `mine` has some versions."""
    found = LiveCatalogue(Catalogue(models={"echo": ECHO}))
    record = ModelRecord(name="mine")
    for number in range(1, versions + 1):
        version = ModelVersion(version=number, digest=str(number), spec=ECHO, pushed_at=0.0)
        record = record.pushed(version, Push(spec=ECHO))
    found.merge([record])
    return found


def plan(of: LiveCatalogue) -> Plan:
    """Compile the graph."""
    return compile_plan(parse_definition(GRAPH), of.now)


def named(found: Plan) -> list[list[str]]:
    """Return every way's model of every node."""
    return [[route.model for route in node.routes] for node in found.worked_on()]


def test_a_run_names_versions_everywhere() -> None:
    """Nodes, alternatives, and graphs inside; what was remembered of the plan is not copied."""
    before = plan(live(2))
    assert [["mine"], ["echo", "mine"]] == named(before)
    assert before.by_id["a"].model == "mine"
    pinned = live(2).pinned(before, "run")
    assert [["mine@2"], ["echo", "mine@2"]] == named(pinned)
    assert pinned.by_id["a"].model == "mine@2"
    assert pinned is live(2).pinned(pinned, "run")


def test_a_plan_without_pushed_models_stays_the_same() -> None:
    """Not even a copy is made."""
    definition = {"nodes": [{"id": "a", "type": "model", "params": {"model": "echo"}}]}
    compiled = compile_plan(parse_definition(definition), live(1).now)
    assert compiled is live(1).pinned(compiled, "run")


def test_a_fork_keeps_versions_unless_it_changes_them() -> None:
    """The path of a change says which node chooses anew."""
    ran = live(1).pinned(plan(live(1)), "run")
    fork = as_before(plan(live(2)), ran, set())
    assert [["mine@1"], ["echo", "mine@1"]] == named(fork)
    assert ran == fork
    changed = as_before(plan(live(2)), ran, {"each/b.model"})
    assert [["mine@1"], ["echo", "mine"]] == named(changed)


async def test_a_model_that_was_just_pushed_is_looked_up() -> None:
    """A run that begins before its orchestrator heard of a model has a version all the same."""
    heard = LiveCatalogue(Catalogue(models={"echo": ECHO}))
    looks = []

    async def look() -> None:
        looks.append(1)
        record = live(2).record("mine")
        assert record is not None
        heard.merge([record])

    versions = Versions(heard, look)
    for _ in range(2):
        chosen = await versions.chosen(plan(live(2)), "run")
        assert [["mine@2"], ["echo", "mine@2"]] == named(chosen)
    assert [1] == looks
