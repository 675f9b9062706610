"""The protocol's extensions, with the clients that Triton's users have, over HTTP and gRPC."""

import json
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from tests.support.inference import DTYPES, Served
from tests.support.wait import until_sync


pytestmark = pytest.mark.nats


@pytest.fixture
def http(served: Served) -> Iterator[triton.InferenceServerClient]:
    """Return Triton's client for HTTP."""
    client = triton.InferenceServerClient(served.address, concurrency=8)
    yield client
    client.close()


@pytest.fixture
def rpc(served: Served) -> Iterator[triton_grpc.InferenceServerClient]:
    """Return Triton's client for gRPC."""
    with triton_grpc.InferenceServerClient(served.grpc) as client:
        yield client


def given(name: str, array: NDArray[Any], kind: Any = triton) -> Any:
    """Return an input of one of Triton's clients."""
    datatype = next(word for word, dtype in DTYPES.items() if array.dtype == dtype)
    tensor = kind.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    return tensor


def figures(client: triton.InferenceServerClient, model: str) -> dict[str, Any]:
    """Return the statistics of a model."""
    [found] = client.get_inference_statistics(model)["model_stats"]
    return found  # type: ignore[no-any-return]


def grown(before: dict[str, Any], after: dict[str, Any]) -> dict[str, int]:
    """Return by how much the counts of a model grew."""
    phases = {
        phase: item["count"] - before["inference_stats"][phase]["count"]
        for phase, item in after["inference_stats"].items()
    }
    totals = {name: after[name] - before[name] for name in ("inference_count", "execution_count")}
    return {**phases, **totals}


def test_statistics_are_true(
    http: triton.InferenceServerClient, rpc: triton_grpc.InferenceServerClient
) -> None:
    """Over both protocols: requests, rows, calls, failures, and times that add up."""
    before = figures(http, "doubling")
    rows = np.ones((3, 3), np.float32)
    for _ in range(4):
        http.infer("doubling", [given("A", rows), given("B", rows)])
    rpc.infer("doubling", [given("A", rows, triton_grpc), given("B", rows, triton_grpc)])
    many = np.ones((9, 3), np.float32)
    with pytest.raises(InferenceServerException, match="1 to 8 rows"):
        http.infer("doubling", [given("A", many), given("B", many)])
    after = figures(http, "doubling")
    assert {
        **dict.fromkeys(("success", "queue"), 5),
        **dict.fromkeys(("compute_input", "compute_infer", "compute_output"), 5),
        "fail": 1,
        "cache_hit": 0,
        "cache_miss": 0,
        "inference_count": 15,
        "execution_count": 5,
    } == grown(before, after)
    assert after["last_inference"] > before["last_inference"]
    spent = {phase: item["ns"] for phase, item in after["inference_stats"].items()}
    parts = spent["queue"] + spent["compute_infer"]
    assert 0 < parts <= spent["success"]
    by_rows = {item["batch_size"]: item["compute_infer"] for item in after["batch_stats"]}
    assert sum(item["count"] for item in by_rows.values()) == after["execution_count"]
    assert sum(size * item["count"] for size, item in by_rows.items()) == after["inference_count"]
    [same] = rpc.get_inference_statistics("doubling", "3").model_stats
    assert (after["execution_count"], after["inference_stats"]["success"]["ns"]) == (
        same.execution_count,
        same.inference_stats.success.ns,
    )

    def memory() -> list[tuple[str, bool]]:  # as cards say, which are renewed now and then
        [found] = rpc.get_inference_statistics("doubling", "3").model_stats
        return [(item.type, item.byte_size > 0) for item in found.memory_usage]

    until_sync(lambda: [("CPU", True)] == memory(), timeout_s=40)


def test_what_is_computed_together_is_one_execution(served: Served) -> None:
    """Rows are counted one by one, calls of the engine as they were."""
    client = triton.InferenceServerClient(served.address)
    before = figures(client, "picky")

    def ask() -> None:
        mine = triton.InferenceServerClient(served.address)
        for index in range(20):
            mine.infer("picky", [given("INDEX", np.array([[index % 10]], np.int64))])
        mine.close()

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    found = grown(before, figures(client, "picky"))
    client.close()
    assert (160, 160) == (found["success"], found["inference_count"])
    assert 0 < found["execution_count"] <= 160


def test_statistics_of_all(http: triton.InferenceServerClient) -> None:
    """Every model, also those nobody asked; an unknown one is 404."""
    names = {item["name"] for item in http.get_inference_statistics()["model_stats"]}
    assert {"doubling", "absent", "echo"} < names
    assert "template" not in names
    assert 0 == figures(http, "absent")["inference_count"]
    for name in (("nobody",), ("doubling", "4")):
        with pytest.raises(InferenceServerException) as caught:
            http.get_inference_statistics(*name)
        assert "404" == caught.value.status()


def test_configuration(
    http: triton.InferenceServerClient, rpc: triton_grpc.InferenceServerClient
) -> None:
    """Triton's ModelConfig, the same over both: with batches the rows are no dimension."""
    config = http.get_model_config("doubling")
    assert ("doubling", "onnx", 8) == (config["name"], config["backend"], config["max_batch_size"])
    assert [{"TYPE_FP32"}, [[3], [3]]] == [
        {item["data_type"] for item in config["input"]},
        [item["dims"] for item in config["output"]],
    ]
    assert {"decoupled": False} == config["model_transaction_policy"]
    found = rpc.get_model_config("doubling", "3", as_json=True)["config"]
    assert config["version_policy"]["specific"]["versions"] == [
        int(item) for item in found["version_policy"]["specific"]["versions"]
    ]
    assert ["A", "B"] == [item["name"] for item in found["input"]]
    assert "dynamic_batching" not in http.get_model_config("echo")
    assert "TYPE_STRING" == http.get_model_config("echo")["input"][0]["data_type"]


@pytest.mark.parametrize("kind", [triton, triton_grpc], ids=["http", "grpc"])
def test_classification(served: Served, kind: Any) -> None:
    """The largest elements of each row, with their index and their label."""
    address = served.address if kind is triton else served.grpc
    client = kind.InferenceServerClient(address)
    x = np.array([[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]], np.float32)
    wanted = [kind.InferRequestedOutput("probabilities", class_count=2)]
    found = client.infer("iris", [given("X", x, kind)], outputs=wanted).as_numpy("probabilities")
    assert (2, 2) == found.shape
    texts = [[item.decode().split(":") for item in row] for row in found]
    assert [["0", "setosa"], ["2", "virginica"]] == [row[0][1:] for row in texts]
    assert float(texts[0][0][0]) > float(texts[0][1][0])
    wanted = [kind.InferRequestedOutput("Y", class_count=5)]
    x = np.array([[2, -7]], np.int64)
    found = client.infer("same-int64", [given("X", x, kind)], outputs=wanted).as_numpy("Y")
    assert [b"2:0", b"-7:1"] == found.reshape(-1).tolist()
    wanted = [kind.InferRequestedOutput("Y", class_count=1)]
    text = np.array([["a", "b"]], np.object_)
    with pytest.raises(InferenceServerException, match="output 'Y': classification needs numbers"):
        client.infer("same-bytes", [given("X", text, kind)], outputs=wanted)
    client.close()


@pytest.mark.parametrize("kind", [triton, triton_grpc], ids=["http", "grpc"])
def test_names_with_slashes(served: Served, kind: Any) -> None:
    """In every address, with and without a version."""
    client = kind.InferenceServerClient(served.address if kind is triton else served.grpc)
    row = np.ones((1, 3), np.float32)
    inputs = [given("A", row, kind), given("B", row, kind)]
    for version in ("", "1"):
        assert client.is_model_ready("of/two.words", version)
        answer = client.infer("of/two.words", inputs, model_version=version)
        assert np.array_equal(2 * row, answer.as_numpy("SUM"))
        client.get_model_metadata("of/two.words", version)
        client.get_model_config("of/two.words", version)
        client.get_inference_statistics("of/two.words", version)
    client.get_trace_settings("of/two.words")
    with pytest.raises(InferenceServerException, match="no model 'of/three'"):
        client.get_model_metadata("of/three")
    client.close()


def lines(served: Served, event: str) -> list[dict[str, Any]]:
    """Return the gateway's log lines of an event."""
    text = served.mesh.services["gateway"].log.read_text()
    return [json.loads(line) for line in text.splitlines() if f'"event":"{event}"' in line]


def test_traces(
    served: Served, http: triton.InferenceServerClient, rpc: triton_grpc.InferenceServerClient
) -> None:
    """Every second inference of one model, three of them; others are not written about."""
    off = http.get_trace_settings()
    assert (["OFF"], "1000", "-1") == tuple(
        off[name] for name in ("trace_level", "trace_rate", "trace_count")
    )
    change = {"trace_level": ["TIMESTAMPS"], "trace_rate": "2", "trace_count": "3"}
    assert "2" == http.update_trace_settings("same-fp32", change)["trace_rate"]
    x = np.ones((1, 2), np.float32)
    for _ in range(5):
        http.infer("same-fp32", [given("X", x)])
        rpc.infer("same-fp32", [given("X", x, triton_grpc)])
    http.infer("same-fp64", [given("X", x.astype(np.float64))])
    found = lines(served, "inference_traced")
    assert ["same-fp32"] * 3 == [line["model"] for line in found]
    assert all(line["ask_ms"] > 0 for line in found)
    assert ["0"] == list(rpc.get_trace_settings("same-fp32").settings["trace_count"].value)
    answer = rpc.update_trace_settings("same-fp32", {"trace_level": ["OFF"]})
    assert ["OFF"] == list(answer.settings["trace_level"].value)
    assert ["OFF"] == http.get_trace_settings()["trace_level"]
    cleared = http.update_trace_settings("same-fp32", {"trace_rate": None})
    assert ("1000", "0") == (cleared["trace_rate"], cleared["trace_count"])
    answer = rpc.update_trace_settings("same-fp32", {"trace_count": None})
    assert ["-1"] == list(answer.settings["trace_count"].value)
    for wrong in (
        {"trace_level": ["TENSORS"]},
        {"trace_rate": "0"},
        {"trace_count": "x"},
        {"trace_file": "/tmp/trace.json"},  # noqa: S108 - refused
        {"trace_mode": "opentelemetry"},
        {"warmth": "1"},
    ):
        [name] = wrong
        with pytest.raises(InferenceServerException, match=name):
            http.update_trace_settings(None, wrong)
        with pytest.raises(InferenceServerException, match=name):
            rpc.update_trace_settings(None, wrong)
    with pytest.raises(InferenceServerException, match="no model 'nobody'"):
        http.update_trace_settings("nobody", change)


def test_log_settings(
    served: Served, http: triton.InferenceServerClient, rpc: triton_grpc.InferenceServerClient
) -> None:
    """A level that is switched off is not written; what does not work is refused."""
    assert http.get_log_settings()["log_info"]
    assert not rpc.update_log_settings({"log_info": False}).settings["log_info"].bool_param
    before = len(lines(served, "request_handled"))
    http.get_model_metadata("doubling")
    assert http.update_log_settings({"log_info": True})["log_info"]
    http.get_model_metadata("doubling")
    http.get_model_metadata("doubling")
    assert len(lines(served, "request_handled")) - before in {2, 3}
    assert rpc.get_log_settings().settings["log_info"].bool_param
    for wrong in (
        {"log_file": "/tmp/log"},  # noqa: S108 - refused
        {"log_verbose_level": 1},
        {"log_format": "ISO8601"},
        {"warmth": True},
    ):
        [name] = wrong
        for client in (http, rpc):
            with pytest.raises(InferenceServerException, match=name):
                client.update_log_settings(wrong)
