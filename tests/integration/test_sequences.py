"""Sequences of a stateful model, with the clients that Triton's users have."""

import queue
import threading
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from tests.support.inference import Served


pytestmark = pytest.mark.nats


def given(number: float, kind: Any = triton, rows: int = 1) -> Any:
    """Return an input of one of Triton's clients."""
    tensor = kind.InferInput("X", [rows, 2], "FP32")
    tensor.set_data_from_numpy(np.full((rows, 2), number, np.float32))
    return tensor


@pytest.mark.parametrize("kind", [triton, triton_grpc], ids=["http", "grpc"])
@pytest.mark.parametrize("sequence", [7, "seven"])
def test_a_sequence_has_a_memory(served: Served, kind: Any, sequence: Any) -> None:
    """From start to end, two of them at the same time; the state is nothing a client sees."""
    client = kind.InferenceServerClient(served.address if kind is triton else served.grpc)
    other = 99

    def ask(number: float, of: Any, *, start: bool = False, end: bool = False) -> float:
        answer = client.infer(
            "adding",
            [given(number, kind)],
            sequence_id=of,
            sequence_start=start,
            sequence_end=end,
        )
        return float(answer.as_numpy("SUM")[0, 1])

    assert [1, 100] == [ask(1, sequence, start=True), ask(100, other, start=True)]
    assert [3, 103] == [ask(2, sequence), ask(3, other)]
    assert [6, 110] == [ask(3, sequence, end=True), ask(7, other, end=True)]
    with pytest.raises(InferenceServerException, match="is not known here"):
        ask(1, sequence)
    assert 1 == ask(1, sequence, start=True)
    assert 5 == ask(5, sequence, start=True), "a start begins anew"
    with pytest.raises(InferenceServerException, match="input 'X' is missing"):
        client.infer("adding", [], sequence_id=sequence)
    assert 6 == ask(1, sequence, end=True), "a step that failed changed nothing"
    with pytest.raises(InferenceServerException, match="send a sequence_id"):
        client.infer("adding", [given(1, kind)])
    metadata = client.get_model_metadata("adding", **({} if kind is triton else {"as_json": True}))
    assert [["X"], ["SUM"]] == [
        [item["name"] for item in metadata[side]] for side in ("inputs", "outputs")
    ]
    client.close()


def test_the_state_is_configured(served: Served) -> None:
    """As Triton's implicit state."""
    client = triton.InferenceServerClient(served.address)
    batching = client.get_model_config("adding")["sequence_batching"]
    assert [
        {
            "input_name": "TOTAL",
            "output_name": "TOTAL_OUT",
            "data_type": "TYPE_FP32",
            "dims": [2],
        }
    ] == batching["state"]
    tensor = triton.InferInput("TOTAL", [1, 2], "FP32")
    tensor.set_data_from_numpy(np.ones((1, 2), np.float32))
    with pytest.raises(InferenceServerException, match="unknown input 'TOTAL'"):
        client.infer("adding", [given(1), tensor], sequence_id=3, sequence_start=True)
    client.close()


def test_many_sequences_at_once(served: Served) -> None:
    """Steps of one are taken in their order, those of others between them; rows have their own."""
    wrong: list[Any] = []

    def play(sequence: int) -> None:
        client = triton.InferenceServerClient(served.address)
        total = 0.0
        for step in range(20):
            total += sequence + step
            answer = client.infer(
                "adding",
                [given(sequence + step, rows=2)],
                sequence_id=sequence,
                sequence_start=step == 0,
                sequence_end=step == 19,
            )
            if answer.as_numpy("SUM").tolist() != [[total] * 2] * 2:
                wrong.append((sequence, step, answer.as_numpy("SUM"), total))
        client.close()

    threads = [threading.Thread(target=play, args=(number,)) for number in range(1000, 1012)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [] == wrong


def test_over_a_stream(served: Served) -> None:
    """As Triton's clients of sequences mostly do."""
    heard: queue.Queue[Any] = queue.Queue()
    with triton_grpc.InferenceServerClient(served.grpc) as client:
        client.start_stream(lambda result, error: heard.put((result, error)))
        for step in range(4):
            client.async_stream_infer(
                "adding",
                [given(step, triton_grpc)],
                sequence_id=55,
                sequence_start=step == 0,
                sequence_end=step == 3,
            )
        found = [heard.get(timeout=10) for _ in range(4)]
        client.stop_stream()
    assert [None] * 4 == [error for _, error in found]
    assert [0, 1, 3, 6] == [result.as_numpy("SUM")[0, 0] for result, _ in found]


@pytest.mark.parametrize("kind", [triton, triton_grpc], ids=["http", "grpc"])
def test_a_model_is_told_of_its_sequences(served: Served, kind: Any) -> None:
    """Where its entry has inputs for that: begin, end, id, for each row of a request."""
    client = kind.InferenceServerClient(served.address if kind is triton else served.grpc)

    def ask(number: float, *, rows: int = 1, start: bool = False, end: bool = False) -> Any:
        step = {"sequence_id": 5 + rows, "sequence_start": start, "sequence_end": end}
        answer = client.infer("told", [given(number, kind, rows)], **step)
        return answer.as_numpy("SUM")[:, 1].tolist(), answer.as_numpy("SEEN").tolist()

    assert ([1], [[1, 0, 1, 6]]) == ask(1, start=True)
    assert ([3], [[0, 0, 1, 6]]) == ask(2)
    assert ([4, 4], [[1, 0, 1, 7]] * 2) == ask(4, rows=2, start=True)
    assert ([6], [[0, 1, 1, 6]]) == ask(3, end=True)
    with pytest.raises(InferenceServerException, match="takes a number"):
        client.infer("told", [given(1, kind)], sequence_id="five", sequence_start=True)
    client.close()


def test_what_a_model_is_told_is_configured(served: Served) -> None:
    """As Triton's control inputs, over both protocols; clients see no such input."""
    http = triton.InferenceServerClient(served.address)
    rpc = triton_grpc.InferenceServerClient(served.grpc)
    said = http.get_model_config("told")["sequence_batching"]["control_input"]
    kinds = {item["name"]: item["control"][0]["kind"] for item in said}
    named = {"START": "START", "END": "END", "READY": "READY", "ID": "CORRID"}
    assert {name: f"CONTROL_SEQUENCE_{kind}" for name, kind in named.items()} == kinds
    assert {"name": "END", "control": [{"kind": kinds["END"], "int32_false_true": [0, 1]}]} in said
    same = rpc.get_model_config("told").config.sequence_batching.control_input
    found = {item.name: item.control[0] for item in same}
    assert kinds == {name: control.Kind.Name(control.kind) for name, control in found.items()}
    assert [0.0, 1.0] == list(found["START"].fp32_false_true)
    assert ["X"] == [item["name"] for item in http.get_model_metadata("told")["inputs"]]
    http.close()
    rpc.close()
