"""What reaches workers besides tasks: calls outside, cancellation, deadlines, lanes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.conftest import MASTER_TEXT, Running
from tests.integration.test_structures import (
    becomes,
    begin,
    ended,
    events_of,
    is_at,
    play,
    statuses,
    tell,
)
from tests.support.mesh import Mesh
from tests.support.outside import Outside, serving
from tests.support.play import control, graph, model
from tests.support.wait import until_sync


pytestmark = pytest.mark.nats


@pytest.fixture
def outside() -> Iterator[Outside]:
    """A server that is no part of the mesh."""
    with serving() as server:
        yield server


def http_node(node_id: str, url: str, inputs: dict[str, str] | None = None, **rest: Any) -> Any:
    """Return an http node."""
    options = {name: rest.pop(name) for name in ("timeout_s", "retry", "memo") if name in rest}
    return {
        "id": node_id,
        "type": "http",
        "params": {"url": url, **rest},
        "inputs": inputs or {},
        **options,
    }


def test_an_http_node_calls_out(http: httpx.Client, outside: Outside) -> None:
    """With a body from upstream, a query and headers that are computed; the answer flows on."""
    call = http_node(
        "call",
        f"{outside.url}/orders",
        {"body": '= {"said": a.text}', "headers": '= {"X-By": run.text}', "query": '= {"n": 1}'},
        method="POST",
    )
    definition = graph(model("a"), call, model("b", "call.body.body"), edges="a>call call>b")
    run = play(http, definition, text="eve")
    assert {"b": {"text": '{"said":"eve"}'}} == run["outputs"]
    seen = outside.seen[0]
    assert ("/orders?n=1", "eve", "application/json") == (
        seen["path"],
        seen["x-by"],
        seen["content-type"],
    )


def test_a_flaky_address_is_tried_again_under_the_same_key(
    http: httpx.Client, outside: Outside
) -> None:
    """Three attempts, one idempotency key; another run has another."""
    retry = {"max_attempts": 4, "initial_delay_s": 0.05}
    call = http_node("call", f"{outside.url}/flaky", method="POST", retry=retry)
    run = play(http, graph(call))
    assert ("completed", 3) == (run["status"], run["outputs"]["call"]["body"]["n"])
    keys = {seen["idempotency-key"] for seen in outside.seen}
    assert (3, 1) == (len(outside.seen), len(keys))
    play(http, graph(call))
    assert outside.seen[-1]["idempotency-key"] not in keys


def test_a_private_address_is_refused_by_the_worker(http: httpx.Client) -> None:
    """Nothing is tried again: the refusal is final."""
    run_id = begin(http, graph(http_node("call", "http://169.254.169.254/latest/meta-data")))
    run = ended(http, run_id)
    assert ("failed", "PERMISSION_DENIED") == (run["status"], run["error"]["code"])
    assert 1 == len(events_of(http, run_id, "NodeFailed"))


def test_cancel_reaches_the_worker(http: httpx.Client, running: Running, outside: Outside) -> None:
    """The call under way is dropped at once, long before its time, and nothing is recorded."""
    run_id = begin(http, graph(http_node("call", f"{outside.url}/slow", timeout_s=60)))
    until_sync(lambda: outside.seen)
    assert tell(http, run_id, action="cancel", reason="enough").is_success
    assert outside.gone.wait(5), "the worker still waits"
    assert "cancelled" == ended(http, run_id)["status"]
    log = running.mesh.services["text-0"].log
    until_sync(
        lambda: (
            f'"run_id":"{run_id}"' in log.read_text() and '"stopped":"cancelled"' in log.read_text()
        )
    )


def test_a_late_call_is_dropped_at_its_deadline(http: httpx.Client, outside: Outside) -> None:
    """The worker knows the deadline and does not wait to be told."""
    call = http_node("call", f"{outside.url}/slow", timeout_s=0.5, retry={"max_attempts": 1})
    run = play(http, graph(call))
    assert ("failed", "DEADLINE_EXCEEDED") == (run["status"], run["error"]["code"])
    assert outside.gone.wait(5)


def test_a_workflow_inside_inherits_the_deadline(http: httpx.Client, outside: Outside) -> None:
    """Its nodes have no more time than what is around them."""
    slow = http_node("call", f"{outside.url}/slow", timeout_s=60)
    each = {**control("each", "foreach", items="[1]", body=graph(slow)), "timeout_s": 0.7}
    run_id = begin(http, graph(each))
    assert "failed" == ended(http, run_id)["status"]
    opened, scheduled = (
        events_of(http, run_id, kind)[0] for kind in ("NodeOpened", "NodeScheduled")
    )
    assert opened["data"]["deadline"] == scheduled["data"]["deadline"]
    assert outside.gone.wait(5)


def test_tasks_of_a_cancelled_run_are_not_begun(running: Running, tmp_path: Path) -> None:
    """Neither those that wait in a worker, nor those that a worker finds when it starts."""
    mesh = Mesh(tmp_path, running.server.url, {"master_key": MASTER_TEXT})
    mesh.add("pool", "services.workers", pool="later")
    calls = graph(*(model(f"n{number}", '"x"', pool="later", timeout_s=60) for number in range(5)))
    with httpx.Client(base_url=running.url(), timeout=30) as http:
        run_id = begin(http, calls)
        becomes(http, run_id, is_at("n4", "scheduled"))
        tell(http, run_id, action="cancel")
        assert "cancelled" == ended(http, run_id)["status"]
        fresh = begin(http, graph(model("n", '"y"', pool="later")))
        try:
            mesh.start()
            assert {"n": {"text": "y"}} == ended(http, fresh)["outputs"]
        finally:
            mesh.stop()
        lines = [
            json.loads(line)
            for line in mesh.services["pool"].log.read_text().splitlines()
            if f'"run_id":"{run_id}"' in line
        ]
        assert ["cancelled"] * 5 == [line["stopped"] for line in lines]
        assert {"scheduled"} == set(statuses(httpx_run(http, run_id)).values())


def httpx_run(http: httpx.Client, run_id: str) -> dict[str, Any]:
    """Return a run as it is."""
    found: dict[str, Any] = http.get(f"/v1/runs/{run_id}").json()
    return found


def test_a_result_of_before_is_taken(http: httpx.Client, outside: Outside) -> None:
    """The address is called once for many runs; the event says whose result it was."""
    call = http_node("call", f"{outside.url}/rates", memo=3600)
    definition = graph(call, model("say", "str(call.body.n)", memo=True), edges="call>say")
    first = begin(http, definition)
    assert {"say": {"text": "1"}} == ended(http, first)["outputs"]
    second = begin(http, definition)
    assert {"say": {"text": "1"}} == ended(http, second)["outputs"]
    assert 1 == len(outside.seen)
    done = [event["data"] for event in events_of(http, second, "NodeCompleted")]
    assert [f"{first}/call", f"{first}/say"] == [event["memo_of"] for event in done]
    assert all("memo_of" not in e["data"] for e in events_of(http, first, "NodeCompleted"))
