"""Concurrency keys on the real mesh: never more at once, also when orchestrators die."""

import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.conftest import MASTER_TEXT, Running
from tests.integration.test_structures import begin, deploy, ended, events_of, look, tell
from tests.support.mesh import Mesh
from tests.support.nats import NatsServer
from tests.support.play import control, graph, model
from tests.support.wait import until_sync


pytestmark = pytest.mark.nats


def most_at_once(http: httpx.Client, run_ids: list[str], node: str) -> int:
    """Return how many of a node were under way at the same time, by the logs."""
    changes: list[tuple[float, int]] = []
    for run_id in run_ids:
        for event in events_of(http, run_id):
            if event["data"].get("node_id") != node:
                continue
            if event["type"] in {"NodeOpened", "NodeScheduled"}:
                changes.append((event["at"], 1))
            if event["type"] in {"NodeCompleted", "NodeFailed", "NodeSkipped"}:
                changes.append((event["at"], -1))
    busy = most = 0
    for _, change in sorted(changes):
        busy += change
        most = max(most, busy)
    return most


def gated(key: str = "run.customer", limit: int = 2) -> dict[str, Any]:
    """Return a graph that takes a moment and waits for its turn."""
    body = graph(control("rest", "delay", seconds=0.15))
    guarded = control("g", "foreach", items="[1]", body=body)
    return graph({**guarded, "concurrency": {"key": key, "limit": limit}})


def start(http: httpx.Client, name: str, customer: str) -> str:
    """Start a run."""
    inputs = {"inputs": {"customer": customer}}
    answer = http.post(f"/v1/workflows/{name}/runs", json=inputs)
    assert answer.is_success, answer.text
    return str(answer.json()["run_id"])


def test_so_many_of_a_key_at_once(http: httpx.Client) -> None:
    """Two of each customer's runs, however many there are; keys do not wait for each other."""
    name = deploy(http, gated())
    runs = {customer: [start(http, name, customer) for _ in range(8)] for customer in ("a", "b")}
    for run_ids in runs.values():
        assert {"completed"} == {ended(http, run_id)["status"] for run_id in run_ids}
        assert most_at_once(http, run_ids, "g") <= 2


def test_who_is_cancelled_makes_room(http: httpx.Client) -> None:
    """Whether it waits or is inside; a failed one too."""
    definition = graph(
        {**control("wait", "signal", name="go"), "concurrency": {"key": '"one"'}},
    )
    first, second, third = (begin(http, definition) for _ in range(3))
    until_sync(lambda: look(http, third)["nodes"][0]["status"] == "queued")
    assert tell(http, second, action="cancel").is_success
    assert "cancelled" == ended(http, second)["status"]
    assert tell(http, first, action="cancel").is_success
    until_sync(lambda: look(http, third)["nodes"][0]["status"] == "scheduled")
    assert tell(http, third, action="signal", name="go").is_success
    assert "completed" == ended(http, third)["status"]


def test_inside_a_foreach(http: httpx.Client) -> None:
    """The iterations of one run wait for each other."""
    node = model("n", "str(input.item)", concurrency={"key": '"iterations of " + run.id'})
    each = control("each", "foreach", items="range(12)", max_parallel=12, body=graph(node))
    run_id = begin(http, graph(each), id="x")
    assert 12 == ended(http, run_id)["outputs"]["each"]["count"]
    assert 12 == len(events_of(http, run_id, "NodeQueued"))


@pytest.mark.timeout(180)
def test_a_gate_outlives_orchestrators(running: Running, tmp_path: Path) -> None:
    """They are killed again and again; every run ends, and never more than one at once."""
    with NatsServer(tmp_path) as server:
        mesh = Mesh(tmp_path / "mesh", server.url, {"master_key": MASTER_TEXT, "ack_wait_s": "2"})
        mesh.add_core(replicas=2)
        mesh.add("gateway", "services.gateway", http_port="0")
        try:
            mesh.start()
            port = mesh.services["gateway"].fact("listening", "port")
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:
                name = deploy(http, gated(limit=1))
                run_ids = [start(http, name, "a") for _ in range(16)]
                for number in range(6):
                    seen = sum(look(http, run_id)["status"] == "completed" for run_id in run_ids)
                    victim = mesh.services[f"orchestrator-{number % 2}"]
                    victim.signal(signal.SIGKILL)
                    victim.start()
                    until_sync(
                        lambda seen=seen: (
                            sum(  # type: ignore[misc]
                                look(http, run_id)["status"] == "completed" for run_id in run_ids
                            )
                            > min(seen, 15)
                        ),
                        timeout_s=30,
                    )
                assert {"completed"} == {ended(http, run_id)["status"] for run_id in run_ids}
                assert 1 == most_at_once(http, run_ids, "g")
        finally:
            mesh.stop()
