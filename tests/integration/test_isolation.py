"""A model that crashes, hangs or takes too much memory, over HTTP and gRPC."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from tests.support.inference import Served, serve
from tests.support.nats import NatsServer
from tests.support.wait import until_sync


pytestmark = pytest.mark.nats
MIB = 1024 * 1024
FOREVER = 10**12


@pytest.fixture(scope="module")
def served(nats_server: NatsServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Serve the tiny models, one of them in a process of its own."""
    with serve(nats_server, tmp_path_factory.mktemp("served")) as served:
        yield served


def http(served: Served, rounds: int, size: int) -> tuple[int, Any]:
    """Ask over HTTP; return status and answer."""
    values = {"ROUNDS": rounds, "SIZE": size}
    inputs = [
        {"name": name, "datatype": "INT64", "shape": [1], "data": [value]}
        for name, value in values.items()
    ]
    url = f"http://{served.address}/v2/models/restless/infer"
    answer = httpx.post(url, json={"inputs": inputs}, timeout=30)
    return answer.status_code, answer.json()


def grpc(served: Served, rounds: int, size: int) -> tuple[str, str]:
    """Ask over gRPC; return status and what is said."""
    inputs = []
    for name, value in {"ROUNDS": rounds, "SIZE": size}.items():
        inputs.append(triton.InferInput(name, [1], "INT64"))
        inputs[-1].set_data_from_numpy(np.array([value]))
    with triton.InferenceServerClient(served.grpc) as client:
        try:
            return "OK", str(client.infer("restless", inputs).as_numpy("DONE")[0])
        except InferenceServerException as error:
            return error.status(), error.message()


def child(served: Served) -> int:
    """Return the process of the model."""
    worker = served.mesh.services["text"].pid
    found: list[int] = []

    def one() -> bool:
        tasks = Path(f"/proc/{worker}/task").glob("*/children")
        found[:] = [int(pid) for task in tasks for pid in task.read_text().split()]
        return len(found) == 1

    until_sync(one)
    return found[0]


def spent_s(pid: int) -> float:
    """Return the processor time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def is_over(pid: int) -> bool:
    """Tell whether a process has ended, whether or not somebody took note."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def crash(served: Served, ask: Callable[[Served, int, int], tuple[Any, Any]]) -> tuple[Any, Any]:
    """Ask, and have the process crash once it computes; return the answer."""
    pid = child(served)
    until, answers = spent_s(pid) + 0.05, list[tuple[Any, Any]]()
    asking = threading.Thread(target=lambda: answers.append(ask(served, FOREVER, 1)))
    asking.start()
    until_sync(lambda: spent_s(pid) > until)
    os.kill(pid, signal.SIGSEGV)
    asking.join(30)
    assert pid != child(served)
    return answers[0]


@pytest.mark.parametrize(
    ("ask", "status"), [(http, 500), (grpc, "StatusCode.INTERNAL")], ids=["http", "grpc"]
)
def test_a_crash_is_500_and_internal(served: Served, ask: Any, status: Any) -> None:
    """And the next request is answered, by another process."""
    until_sync(lambda: http(served, 3, 5)[0] == 200)
    assert [5.0] == http(served, 3, 5)[1]["outputs"][0]["data"]
    found = crash(served, ask)
    assert status == found[0]
    assert "crashed while it computed this input (SIGSEGV)" in str(found[1])
    until_sync(lambda: grpc(served, 3, 7) == ("OK", "7.0"))


def test_a_hang_is_504_and_deadline_exceeded(served: Served) -> None:
    """After the model's `timeout_s`; who asks another model meanwhile does not wait."""
    begun = time.monotonic()
    status, answer = http(served, FOREVER, 1)
    assert (504, True) == (status, "did not answer within 3 s" in answer["error"])
    assert 3.0 <= time.monotonic() - begun < 60.0
    assert "StatusCode.DEADLINE_EXCEEDED" == grpc(served, FOREVER, 1)[0]
    until_sync(lambda: http(served, 3, 5)[0] == 200)


def test_too_much_memory_is_500_and_internal(served: Served) -> None:
    """Of its own limit; the worker does not grow."""
    for ask, status in ((http, 500), (grpc, "StatusCode.INTERNAL")):
        found = ask(served, FOREVER, 150 * MIB)
        assert status == found[0]
        assert "more than its limit of 200 MiB" in str(found[1])
        until_sync(lambda: http(served, 3, 5)[0] == 200)


def test_a_worker_that_is_killed_takes_its_processes_along(served: Served) -> None:
    """Even one that computes and would not notice: the last test of this module."""
    until_sync(lambda: http(served, 3, 5)[0] == 200)
    pid = child(served)
    until = spent_s(pid) + 0.05
    asking = threading.Thread(target=http, args=(served, FOREVER, 1))
    asking.start()
    until_sync(lambda: spent_s(pid) > until)
    os.kill(served.mesh.services["text"].pid, signal.SIGKILL)
    until_sync(lambda: is_over(pid), timeout_s=20)
    asking.join(30)
