"""Every control structure on the real mesh, over HTTP, with workers that work."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import nats
import pytest

from events.subjects import topic
from schemas.ids import DEFAULT_TENANT, new_id
from services.runtime import SystemClock
from tests.integration.conftest import Running
from tests.support.play import control, graph, model
from tests.support.wait import until_sync


pytestmark = pytest.mark.nats


def deploy(http: httpx.Client, definition: dict[str, Any], **rest: Any) -> str:
    """Deploy under a name of its own."""
    name = f"flow_{new_id().lower()}"
    answer = http.post("/v1/workflows", json={"name": name, "definition": definition, **rest})
    assert answer.is_success, answer.text
    return name


def begin(http: httpx.Client, definition: dict[str, Any], **inputs: Any) -> str:
    """Start a run and do not wait for it."""
    name = deploy(http, definition)
    answer = http.post(f"/v1/workflows/{name}/runs", json={"inputs": inputs})
    assert answer.is_success, answer.text
    return str(answer.json()["run_id"])


def play(http: httpx.Client, definition: dict[str, Any], **inputs: Any) -> dict[str, Any]:
    """Run a workflow to its end."""
    return ended(http, begin(http, definition, **inputs))


def look(http: httpx.Client, run_id: str) -> dict[str, Any]:
    """Return a run as it is."""
    answer = http.get(f"/v1/runs/{run_id}")
    found: dict[str, Any] = answer.json() if answer.is_success else {"status": "", "nodes": []}
    return found


def ended(http: httpx.Client, run_id: str) -> dict[str, Any]:
    """Return a run that is over."""
    becomes(http, run_id, lambda run: run["status"] not in {"", "accepted", "running", "paused"})
    return look(http, run_id)


def becomes(http: httpx.Client, run_id: str, what: Callable[[dict[str, Any]], object]) -> None:
    """Wait until a run is in some state."""
    try:
        until_sync(lambda: what(look(http, run_id)), timeout_s=20)
    except TimeoutError as error:
        raise AssertionError(json.dumps(look(http, run_id), indent=1)) from error


def statuses(run: dict[str, Any]) -> dict[str, str]:
    """Return the status of each node by path."""
    return {node["id"]: node["status"] for node in run["nodes"]}


def is_at(path: str, status: str) -> Callable[[dict[str, Any]], bool]:
    """Return whether a node of a run has a status."""
    return lambda run: statuses(run).get(path) == status


def events_of(http: httpx.Client, run_id: str, *types: str) -> list[dict[str, Any]]:
    """Return the events of a run, of some types."""
    answer = http.get(f"/v1/runs/{run_id}/events")
    events: list[dict[str, Any]] = answer.json()["events"]
    return [event for event in events if not types or event["type"] in types]


def tell(http: httpx.Client, run_id: str, **command: Any) -> httpx.Response:
    """Steer a run."""
    return http.post(f"/v1/runs/{run_id}/control", json=command)


LONG = "x" * 20_000
"""More than echo takes, so that a node fails for good."""


def fails(node_id: str, **rest: Any) -> dict[str, Any]:
    """Return a node that fails when the run brings `long`."""
    return model(node_id, "run.long", **rest)


@pytest.mark.parametrize(("t", "worn"), [(40, "fan"), (0, "coat"), (20, "shirt")])
def test_switch_and_conditions(http: httpx.Client, t: int, worn: str) -> None:
    """One branch is taken, the others are skipped, the join takes what there is."""
    names = ("fan", "coat", "shirt")
    definition = graph(
        control("route", "switch", cases={"fan": "input.t > 30", "coat": "input.t < 5"}),
        *(model(name, f'"{name}"') for name in names),
        model("say"),
        model("warm", '"stay in"'),
    )
    definition["edges"] = [
        {"source": "route", "target": "fan", "case": "fan"},
        {"source": "route", "target": "coat", "case": "coat"},
        {"source": "route", "target": "shirt", "case": "default"},
        *({"source": name, "target": "say"} for name in names),
        {"source": "say", "target": "warm", "when": "input.t < 5"},
    ]
    run = play(http, definition, t=t)
    found = statuses(run)
    assert ("completed", {worn}) == (
        run["status"],
        {name for name in names if found[name] == "completed"},
    )
    assert ("completed" if worn == "coat" else "skipped") == found["warm"]
    say = next(node for node in run["nodes"] if node["id"] == "say")
    assert {"text": worn} == say["outputs"]


@pytest.mark.parametrize(
    ("join", "yes", "outcome"),
    [("all", 1, "completed"), ("any", 1, "completed"), (2, 1, "skipped"), (2, 3, "completed")],
)
def test_joins(http: httpx.Client, join: Any, yes: int, outcome: str) -> None:
    """All, any, and a number of edges."""
    names = ("a", "b", "c")
    definition = graph(*(model(name, f'"{name}"') for name in names), {**model("z"), "join": join})
    definition["edges"] = [
        {"source": name, "target": "z", "when": f"{place} < input.yes"}
        for place, name in enumerate(names)
    ]
    run = play(http, definition, yes=yes)
    assert ("completed", outcome) == (run["status"], statuses(run)["z"])


def test_while(http: httpx.Client) -> None:
    """Variables flow through workers from one iteration to the next; a bound ends what does not."""
    loop = control(
        "loop",
        "loop",
        init={"text": "input.text"},
        while_="len(input.text) < 5",
        next={"text": "grow.text"},
        body=graph(model("grow", 'input.text + "!"')),
    )
    run = play(http, graph(loop), text="hi")
    assert {"loop": {"text": "hi!!!", "iterations": 3}} == run["outputs"]
    endless = {**loop, "params": {**loop["params"], "while": "true", "max_iterations": 4}}
    run = play(http, graph(endless), text="hi")
    assert ("failed", "FAILED_PRECONDITION") == (run["status"], run["error"]["code"])


def test_foreach_is_bounded_and_keeps_order(http: httpx.Client) -> None:
    """Never more than `max_parallel` at once; results in the order of the items."""
    each = control(
        "each",
        "foreach",
        items="input.words",
        as_="word",
        max_parallel=3,
        collect="upper(say.text)",
        body=graph(model("say", "input.word")),
    )
    words = [f"w{number}" for number in range(20)]
    run_id = begin(http, graph(each), words=words)
    run = ended(http, run_id)
    assert {"items": [word.upper() for word in words], "count": 20} == run["outputs"]["each"]
    busy = most = 0
    for event in events_of(http, run_id, "ScopeOpened", "ScopeClosed"):
        busy += 1 if event["type"] == "ScopeOpened" else -1
        most = max(most, busy)
    assert 3 == most


def test_foreach_exits_early(http: httpx.Client) -> None:
    """What `until` finds begins nothing further."""
    each = control(
        "each",
        "foreach",
        items="range(1000)",
        max_parallel=2,
        until="input.index >= 5",
        body=graph(model("say", "str(input.item)")),
    )
    run = play(http, graph(each))
    assert run["status"] == "completed"
    assert 6 <= run["outputs"]["each"]["count"] <= 7


def test_try_catch_finally(http: httpx.Client) -> None:
    """A worker's failure is caught and told; finally runs either way."""
    guard = control(
        "guard",
        "try",
        body=graph(fails("bad")),
        catch=graph(model("mend", 'input.error.code + " in " + run.name')),
        finally_=graph(model("tidy", '"tidied"')),
    )
    run = play(http, graph(guard), long=LONG, name="test")
    assert {"text": "INVALID_ARGUMENT in test"}.items() <= run["outputs"]["guard"].items()
    assert "completed" == statuses(run)["guard[finally]/tidy"]
    uncaught = {**guard, "params": {k: v for k, v in guard["params"].items() if k != "catch"}}
    run = play(http, graph(uncaught), long=LONG)
    assert ("failed", "completed") == (run["status"], statuses(run)["guard[finally]/tidy"])
    run = play(http, graph(guard), long="fine", name="test")
    assert {"guard": {"text": "fine"}} == run["outputs"]


def saga(last: dict[str, Any]) -> dict[str, Any]:
    """Return two bookings that can be undone, and a node after them."""
    undo = graph(model("undo", '"undo " + input.outputs.text'))
    return graph(
        model("flight", '"flight"', compensate=undo),
        model("hotel", '"hotel"', compensate=undo),
        last,
        edges=f"flight>hotel hotel>{last['id']}",
    )


def test_compensation_on_failure_runs_backwards(http: httpx.Client) -> None:
    """The newest first, one after the other."""
    run_id = begin(http, saga(fails("pay")), long=LONG)
    run = ended(http, run_id)
    undone = [
        event["data"]["outputs"]["text"]
        for event in events_of(http, run_id, "NodeCompleted")
        if "compensate" in event["data"]["node_id"]
    ]
    assert ("failed", ["undo hotel", "undo flight"]) == (run["status"], undone)


def test_compensation_on_cancel(http: httpx.Client) -> None:
    """A cancelled run undoes what it did before it is over."""
    run_id = begin(http, saga(control("wait", "signal")))
    becomes(http, run_id, is_at("wait", "scheduled"))
    tell(http, run_id, action="cancel", reason="changed my mind")
    run = ended(http, run_id)
    done = statuses(run)
    assert ("cancelled", "completed", "completed") == (
        run["status"],
        done["flight[compensate]/undo"],
        done["hotel[compensate]/undo"],
    )


def test_a_workflow_inside_a_workflow(http: httpx.Client) -> None:
    """It is the one that was there at deploy, whatever is deployed later."""
    inner = deploy(http, graph(model("say", '"hello " + input.text')))
    outer = graph(model("a"), control("sub", "workflow", workflow=inner), edges="a>sub")
    name = deploy(http, outer)
    http.post("/v1/workflows", json={"name": inner, "definition": graph(model("say", '"changed"'))})
    answer = http.post(f"/v1/workflows/{name}/runs?wait=20", json={"inputs": {"text": "you"}})
    assert {"sub": {"text": "hello you"}} == answer.json()["outputs"], answer.text


def test_a_graph_made_by_a_node(http: httpx.Client) -> None:
    """It is compiled like any other, and what does not compile fails its node by name."""
    definition = graph(control("made", "dynamic", graph="input.plan"))
    plan = graph(model("x", '"made " + input.text'), model("y"), edges="x>y")
    run = play(http, definition, plan=plan, text="here")
    assert {"made": {"text": "made here"}} == run["outputs"]
    broken = graph(model("x", "nowhere.text"))
    run = play(http, definition, plan=broken, text="here")
    assert run["status"] == "failed"
    assert "nowhere" in run["error"]["message"]


def test_delay_and_until_never_end_early(http: httpx.Client) -> None:
    """By the clock of the log."""
    definition = graph(
        control("pause", "delay", seconds=0.4),
        control("then", "delay", until="input.at"),
        model("say", '"now"'),
        edges="pause>then then>say",
    )
    at = SystemClock().now() + 1.2
    run_id = begin(http, definition, at=at)
    run = ended(http, run_id)
    done = {
        event["data"]["node_id"]: event["at"] for event in events_of(http, run_id, "NodeCompleted")
    }
    assert run["status"] == "completed"
    assert done["pause"] - run["started_at"] >= 0.4
    assert at <= done["then"] < at + 2


def test_deadlines(http: httpx.Client) -> None:
    """Of a wait, of a control node, and of a whole run."""
    wait = control("wait", "signal")
    run = play(http, graph(wait, timeout_s=0.5))
    assert ("failed", "DEADLINE_EXCEEDED") == (run["status"], run["error"]["code"])
    body = graph(control("inner", "signal"))
    guard = {**control("guard", "try", body=body, catch=graph(model("late", '"late"')))}
    slow = {**control("slow", "foreach", items="[1]", body=graph(wait)), "timeout_s": 0.5}
    guard["params"]["body"] = graph(slow)
    run = play(http, graph(guard))
    assert ("completed", "late") == (run["status"], run["outputs"]["guard"]["text"])


def test_signal_and_its_timeout(http: httpx.Client) -> None:
    """A payload that came, one that came before it was asked for, and none in time."""
    definition = graph(
        model("a"),
        control("approved", "signal"),
        model("say", "approved.payload.by"),
        edges="a>approved approved>say",
    )
    run_id = begin(http, definition, text="x")
    becomes(http, run_id, is_at("approved", "scheduled"))
    tell(http, run_id, action="signal", name="approved", payload={"by": "eve"})
    assert {"say": {"text": "eve"}} == ended(http, run_id)["outputs"]
    late = {**control("word", "signal", default="nobody"), "timeout_s": 0.3}
    run = play(http, graph(late))
    assert {"word": {"payload": "nobody", "timed_out": True}} == run["outputs"]
    run = play(http, graph({**control("word", "signal"), "timeout_s": 0.3}))
    assert ("failed", "DEADLINE_EXCEEDED") == (run["status"], run["error"]["code"])


async def test_emit(running: Running, http: httpx.Client) -> None:
    """Any NATS client hears what a node says."""
    subject = f"said.{new_id().lower()}"
    say = {**control("out", "emit", subject=subject), "inputs": {"payload": '= {"n": 1}'}}
    nc = await nats.connect(running.server.url)
    try:
        heard = await nc.subscribe(topic(DEFAULT_TENANT, subject))
        await nc.flush()
        run = play(http, graph(model("a"), say, edges="a>out"), text="x")
        message = await heard.next_msg(timeout=5)
    finally:
        await nc.close()
    assert ("completed", b'{"n":1}') == (run["status"], message.data)


def test_pause_and_resume(http: httpx.Client) -> None:
    """While it is paused nothing begins, results are kept, and a deadline of a wait may pass."""
    definition = graph(control("wait", "delay", seconds=3), model("b", '"b"'), edges="wait>b")
    run_id = begin(http, definition)
    becomes(http, run_id, is_at("wait", "scheduled"))
    tell(http, run_id, action="pause", reason="look")
    becomes(http, run_id, lambda run: run["status"] == "paused")
    paused = look(http, run_id)
    until_sync(lambda: SystemClock().now() > paused["started_at"] + 3.5)
    assert ("paused", "scheduled") == (
        look(http, run_id)["status"],
        statuses(look(http, run_id))["wait"],
    )
    tell(http, run_id, action="resume")
    assert {"b": {"text": "b"}} == ended(http, run_id)["outputs"]


def test_retry_follows_its_policy(http: httpx.Client) -> None:
    """Codes, number of attempts, and waits that grow linearly."""
    retry = {
        "max_attempts": 3,
        "initial_delay_s": 0.2,
        "backoff": "linear",
        "codes": ["INVALID_ARGUMENT"],
    }
    run_id = begin(http, graph(fails("bad", retry=retry)), long=LONG)
    run = ended(http, run_id)
    failed = events_of(http, run_id, "NodeFailed")
    assert ("failed", 3) == (run["status"], len(failed))
    waits = [event["data"]["retry_at"] - event["at"] for event in failed[:2]]
    assert [0.2, 0.4] == [round(wait, 3) for wait in waits]
    run_id = begin(http, graph(fails("bad", retry={**retry, "codes": ["UNAVAILABLE"]})), long=LONG)
    ended(http, run_id)
    assert 1 == len(events_of(http, run_id, "NodeFailed"))


def test_retry_and_skip_by_hand(http: httpx.Client) -> None:
    """A run that pauses at a failure is mended: tried again, then done without."""
    definition = graph(fails("bad"), model("after"), edges="bad>after", on_failure="pause")
    run_id = begin(http, definition, long=LONG)
    becomes(http, run_id, lambda run: run["status"] == "paused")
    tell(http, run_id, action="retry", node="bad")
    becomes(http, run_id, lambda run: run["status"] == "paused" and run["nodes"][0]["attempt"] == 2)
    tell(http, run_id, action="skip", node="bad", outputs={"text": "by hand"})
    assert {"after": {"text": "by hand"}} == ended(http, run_id)["outputs"]


def test_a_run_that_is_over_is_run_again(http: httpx.Client) -> None:
    """From its failed node, with another input, or all of it: a fork is a run of its own."""
    run_id = begin(http, graph(model("a"), fails("b"), edges="a>b"), text="x", long=LONG)
    assert "failed" == ended(http, run_id)["status"]
    body = {"changes": {"inputs.long": "short"}}
    mended = http.post(f"/v1/runs/{run_id}/fork?wait=20", json=body).json()
    assert ("completed", {"b": {"text": "short"}}) == (mended["status"], mended["outputs"])
    assert [True, False] == [node.get("kept_from") is not None for node in mended["nodes"]]
    again = http.post(f"/v1/runs/{run_id}/fork?wait=20", json={"at": 1}).json()
    assert "failed" == again["status"]
    assert [False, False] == [node.get("kept_from") is not None for node in again["nodes"]]


def test_another_way_is_taken_when_one_does_not_answer(http: httpx.Client) -> None:
    """Nobody works in the first pool: the hedge asks the next, whose answer counts."""
    node = model(
        "say",
        "input.text",
        pool="nobody",
        alternatives=[{"model": "echo", "pool": "default"}],
        hedge_after_s=0.3,
    )
    run_id = begin(http, graph(node), text="hi")
    assert {"say": {"text": "hi"}} == ended(http, run_id)["outputs"]
    first, second = events_of(http, run_id, "NodeScheduled")
    assert (0, 1, True) == (
        first["data"]["route"]["index"],
        second["data"]["route"]["index"],
        second["data"]["hedge"],
    )
    assert {"nobody/echo", "default/echo"} == {
        figures["route"] for figures in second["data"]["route"]["figures"]
    }


def test_a_failing_way_is_left_for_another(http: httpx.Client) -> None:
    """A retry after a timeout takes the other way."""
    node = model(
        "say",
        "input.text",
        pool="nobody",
        alternatives=[{"model": "echo", "pool": "default"}],
        timeout_s=0.5,
        retry={"max_attempts": 2, "initial_delay_s": 0.1},
    )
    run_id = begin(http, graph(node), text="hi")
    assert {"say": {"text": "hi"}} == ended(http, run_id)["outputs"]
    routes = [e["data"]["route"]["index"] for e in events_of(http, run_id, "NodeScheduled")]
    assert [0, 1] == routes
