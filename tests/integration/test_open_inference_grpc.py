"""The Open Inference Protocol over gRPC, with the client that Triton's users have."""

import concurrent.futures
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from tests.support import hostile_models as hostile
from tests.support import onnx_models as tiny
from tests.support.inference import DTYPES, Served


pytestmark = pytest.mark.nats
HEALTH = "/grpc.health.v1.Health/Check"


@pytest.fixture
def client(served: Served) -> Iterator[triton.InferenceServerClient]:
    """Return Triton's own client."""
    with triton.InferenceServerClient(served.grpc) as client:
        yield client


@pytest.fixture
def stub(served: Served) -> Iterator[Any]:
    """Return a client that sends whatever a message can say."""
    with grpc.insecure_channel(served.grpc) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def given(name: str, array: NDArray[Any]) -> triton.InferInput:
    """Return an input of Triton's client."""
    datatype = next(word for word, dtype in DTYPES.items() if array.dtype == dtype)
    tensor = triton.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    return tensor


def test_who_is_there(client: triton.InferenceServerClient) -> None:
    """Life, readiness, metadata of the server and of models, by version."""
    assert client.is_server_live()
    assert client.is_server_ready()
    assert "clawdbot" == client.get_server_metadata().name
    metadata = client.get_model_metadata("doubling", "3")
    assert ("doubling", ["3"], "clawdbot_onnx") == (
        metadata.name,
        list(metadata.versions),
        metadata.platform,
    )
    assert [("A", "FP32", [-1, 3]), ("B", "FP32", [-1, 3])] == [
        (item.name, item.datatype, list(item.shape)) for item in metadata.inputs
    ]
    assert client.is_model_ready("doubling")
    assert not client.is_model_ready("absent")
    with pytest.raises(InferenceServerException, match="no version '4'") as caught:
        client.is_model_ready("doubling", "4")
    assert "StatusCode.NOT_FOUND" == caught.value.status()


def test_the_health_service(served: Served) -> None:
    """SERVING, which is what probes of Kubernetes ask for."""
    with grpc.insecure_channel(served.grpc) as channel:
        check = channel.unary_unary(HEALTH)
        assert b"\x08\x01" == check(b"")


@pytest.mark.parametrize("datatype", DTYPES)
def test_every_datatype(client: triton.InferenceServerClient, datatype: str) -> None:
    """There and back through a model that changes nothing."""
    dtype: Any = DTYPES[datatype]
    array = (
        np.array([["é", ""], ["b", "c" * 300]], np.object_)
        if datatype == "BYTES"
        else np.array([[0, 1], [100, 7]]).astype(dtype)
    )
    answer = client.infer(f"same-{datatype.lower()}", [given("X", array)], request_id="mine")
    found = answer.as_numpy("Y")
    if datatype == "BYTES":
        found = np.array([item.decode() for item in found.reshape(-1)], np.object_).reshape(2, 2)
    assert np.array_equal(array, found)
    assert ("mine", "1") == (answer.get_response().id, answer.get_response().model_version)


def test_what_is_asked_for(client: triton.InferenceServerClient) -> None:
    """Outputs in the order asked for, parameters, large tensors, and a client's deadline."""
    a, b = np.ones((2, 3), np.float32), np.arange(6, dtype=np.float32).reshape(2, 3)
    wanted = [triton.InferRequestedOutput(name) for name in ("TWICE", "SUM")]
    answer = client.infer(
        "doubling", [given("B", b), given("A", a)], outputs=wanted, priority=1, client_timeout=20
    )
    assert ["TWICE", "SUM"] == [item.name for item in answer.get_response().outputs]
    assert np.array_equal(2 * a, answer.as_numpy("TWICE"))
    assert np.array_equal(a + b, answer.as_numpy("SUM"))
    packed = client.infer("doubling", [given("A", a), given("B", b)], compression_algorithm="gzip")
    assert np.array_equal(a + b, packed.as_numpy("SUM"))
    large = np.random.default_rng(1).random((600_000, 2)).astype(np.float32)
    assert np.array_equal(large, client.infer("same-fp32", [given("X", large)]).as_numpy("Y"))
    text = given("text", np.array(["turn on the lights"], np.object_))
    answer = client.infer("intent-small", [text], parameters={"min_confidence": 0.2})
    assert b"lights" == answer.as_numpy("intent")[0]


def test_asked_asynchronously(client: triton.InferenceServerClient) -> None:
    """Many at once; everybody gets their own."""
    done: concurrent.futures.Future[None] = concurrent.futures.Future()
    found: dict[int, float] = {}

    def heard(number: int) -> Callable[[Any, Any], None]:
        def hear(result: Any, error: Any) -> None:
            found[number] = float("nan") if error else result.as_numpy("SUM")[0, 0]
            if len(found) == 100:
                done.set_result(None)

        return hear

    for number in range(100):
        row = np.full((1, 3), number, np.float32)
        client.async_infer("doubling", [given("A", row), given("B", row)], heard(number))
    done.result(30)
    assert {number: 2.0 * number for number in range(100)} == found


TYPED = {
    "BOOL": ("bool_contents", [True, False]),
    "UINT8": ("uint_contents", [0, 255]),
    "UINT16": ("uint_contents", [0, 65535]),
    "UINT32": ("uint_contents", [0, 2**32 - 1]),
    "UINT64": ("uint64_contents", [0, 2**64 - 1]),
    "INT8": ("int_contents", [-128, 127]),
    "INT16": ("int_contents", [-1, 2]),
    "INT32": ("int_contents", [-(2**31), 2]),
    "INT64": ("int64_contents", [-(2**63), 2]),
    "FP32": ("fp32_contents", [0.5, float("inf")]),
    "FP64": ("fp64_contents", [0.1, -1e300]),
    "BYTES": ("bytes_contents", ["é".encode(), b""]),
}


def request(model: str = "same-fp32", **changes: Any) -> Any:
    """Return a request with one input X; a change replaces a field of it, or of its input."""
    made = service_pb2.ModelInferRequest(model_name=model)
    tensor = made.inputs.add(name="X", datatype="FP32", shape=[1, 2])
    for name, value in changes.items():
        owner = made if name in made.DESCRIPTOR.fields_by_name and name != "parameters" else tensor
        field = getattr(owner, name)
        if isinstance(field, str):
            setattr(owner, name, value)
        elif name == "contents":
            for kind, items in value.items():
                getattr(field, kind).extend(items)
        else:
            del field[:]
            field.extend(value)
    return made


@pytest.mark.parametrize("datatype", TYPED)
def test_typed_contents(stub: Any, datatype: str) -> None:
    """As clients without numpy send them."""
    field, items = TYPED[datatype]
    asked = request(f"same-{datatype.lower()}", datatype=datatype, contents={field: items})
    answer = stub.ModelInfer(asked)
    [raw] = answer.raw_output_contents
    if datatype == "BYTES":
        assert b"\2\0\0\0\xc3\xa9\0\0\0\0" == raw
    else:
        assert items == np.frombuffer(raw, DTYPES[datatype]).tolist()


def test_bf16(stub: Any) -> None:
    """As raw contents, which is the only way."""
    data = b"\xc0\x3f\x00\xc0"
    answer = stub.ModelInfer(request("same-bf16", datatype="BF16", raw_input_contents=[data]))
    assert [data] == list(answer.raw_output_contents)


BAD: dict[str, tuple[Any, str, str]] = {
    "no model": (request("nobody"), "NOT_FOUND", "no model 'nobody'"),
    "no version": (request(model_version="9"), "NOT_FOUND", "no version '9'"),
    "no data": (request(), "INVALID_ARGUMENT", "needs 8 bytes, the tensor has 0"),
    "too few": (request(raw_input_contents=[bytes(7)]), "INVALID_ARGUMENT", "tensor has 7"),
    "too many": (request(raw_input_contents=[bytes(9)]), "INVALID_ARGUMENT", "tensor has 9"),
    "two for one": (
        request(raw_input_contents=[bytes(8)] * 2),
        "INVALID_ARGUMENT",
        "1 inputs and 2",
    ),
    "raw and typed": (
        request(raw_input_contents=[bytes(8)], contents={"fp32_contents": [1, 2]}),
        "INVALID_ARGUMENT",
        "not two",
    ),
    "typed otherwise": (
        request(contents={"int_contents": [1, 2]}),
        "INVALID_ARGUMENT",
        "are fp32_contents, not int_contents",
    ),
    "two types": (
        request(contents={"int_contents": [1], "fp32_contents": [1, 2]}),
        "INVALID_ARGUMENT",
        "not int_contents",
    ),
    "out of range": (
        request("same-int8", datatype="INT8", contents={"int_contents": [1, 128]}),
        "INVALID_ARGUMENT",
        "out of the range of INT8",
    ),
    "FP16 typed": (
        request("same-fp16", datatype="FP16", contents={"fp32_contents": [1, 2]}),
        "INVALID_ARGUMENT",
        "send raw_input_contents",
    ),
    "another datatype": (
        request(datatype="INT32", raw_input_contents=[bytes(8)]),
        "INVALID_ARGUMENT",
        "the datatype is FP32, not INT32",
    ),
    "no datatype": (request(datatype=""), "INVALID_ARGUMENT", "no datatype"),
    "another shape": (
        request(shape=[2], raw_input_contents=[bytes(8)]),
        "INVALID_ARGUMENT",
        r"the shape is [-1, 2], not [2]",
    ),
    "negative": (
        request(shape=[-1, 2], raw_input_contents=[bytes(8)]),
        "INVALID_ARGUMENT",
        "none below 0",
    ),
    "2^62 rows": (
        request(shape=[2**62, 2], raw_input_contents=[bytes(8)]),
        "INVALID_ARGUMENT",
        "more elements than",
    ),
    "17 dimensions": (request(shape=[1] * 17), "INVALID_ARGUMENT", "at most 16 dimensions"),
    "another name": (
        request(name="Z", raw_input_contents=[bytes(8)]),
        "INVALID_ARGUMENT",
        "unknown input 'Z'",
    ),
    "another output": (
        request(
            raw_input_contents=[bytes(8)],
            outputs=[service_pb2.ModelInferRequest.InferRequestedOutputTensor(name="Z")],
        ),
        "INVALID_ARGUMENT",
        "unknown output 'Z'",
    ),
    "a long id": (
        request(id="x" * 999, raw_input_contents=[bytes(8)]),
        "INVALID_ARGUMENT",
        "id",
    ),
    "text cut off": (
        request("same-bytes", datatype="BYTES", raw_input_contents=[b"\5\0\0"]),
        "INVALID_ARGUMENT",
        "cut off",
    ),
    "no file": (
        request("absent", shape=[2], raw_input_contents=[bytes(8)]),
        "UNAVAILABLE",
        "there is no file",
    ),
}


def with_parameters(on: str = "request", **given: Any) -> Any:
    """Return a request that works but for parameters of it, of its input or of its output."""
    made = request(raw_input_contents=[bytes(8)])
    owner = {"request": made, "input": made.inputs[0]}.get(on) or made.outputs.add(name="Y")
    kinds = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
    for name, value in given.items():
        if value is None:
            owner.parameters[name].SetInParent()
        else:
            setattr(owner.parameters[name], kinds[type(value)], value)
    return made


REGION = {"shared_memory_region": "absent", "shared_memory_byte_size": 8}
BAD |= {
    "a parameter without a value": (
        with_parameters(warmth=None),
        "INVALID_ARGUMENT",
        "'warmth' has no value",
    ),
    "an unknown parameter": (with_parameters(warmth=1), "INVALID_ARGUMENT", "no parameter"),
    "a priority below 0": (with_parameters(priority=-1), "INVALID_ARGUMENT", "'priority'"),
    "a priority that is a text": (with_parameters(priority="1"), "INVALID_ARGUMENT", "'priority'"),
    "a timeout that is a text": (with_parameters(timeout="soon"), "INVALID_ARGUMENT", "'timeout'"),
    "a timeout that is true": (with_parameters(timeout=True), "INVALID_ARGUMENT", "'timeout'"),
    "a sequence": (with_parameters(sequence_id=7), "INVALID_ARGUMENT", "keeps no state"),
    "a sequence of a fraction": (
        with_parameters(sequence_id=0.5),
        "INVALID_ARGUMENT",
        "'sequence_id'",
    ),
    "the end of no sequence": (
        with_parameters(sequence_end=True),
        "INVALID_ARGUMENT",
        "needs a 'sequence_id'",
    ),
    "a start that is a number": (
        with_parameters(sequence_id=7, sequence_start=1),
        "INVALID_ARGUMENT",
        "true or false",
    ),
    "a flag that is a number": (
        with_parameters(binary_data_output=1),
        "INVALID_ARGUMENT",
        "true or false",
    ),
    "classes that are a text": (
        with_parameters("output", classification="2"),
        "INVALID_ARGUMENT",
        "'classification' must be a whole number",
    ),
    "classes below 0": (
        with_parameters("output", classification=-2),
        "INVALID_ARGUMENT",
        "'classification'",
    ),
    "a region and data": (
        with_parameters("input", **REGION),
        "INVALID_ARGUMENT",
        "0 inputs and 1 raw_input_contents",
    ),
    "an output into no region": (
        with_parameters("output", **REGION),
        "NOT_FOUND",
        "no shared memory region 'absent'",
    ),
    "a region without a size": (
        with_parameters("input", shared_memory_region="r"),
        "INVALID_ARGUMENT",
        "'shared_memory_byte_size'",
    ),
    "an output twice": (
        request(
            raw_input_contents=[bytes(8)],
            outputs=[service_pb2.ModelInferRequest.InferRequestedOutputTensor(name="Y")] * 2,
        ),
        "INVALID_ARGUMENT",
        "asked for twice",
    ),
    "2^31 rows": (
        request(shape=[2**31, 2], raw_input_contents=[bytes(8)]),
        "INVALID_ARGUMENT",
        "needs 17179869184 bytes",
    ),
    "text that is longer than it is": (
        request(
            "same-bytes",
            datatype="BYTES",
            shape=[1, 2],
            raw_input_contents=[b"\xff\xff\xff\xffab"],
        ),
        "INVALID_ARGUMENT",
        "says it has 4294967295 bytes",
    ),
    "no inputs": (
        service_pb2.ModelInferRequest(model_name="same-fp32"),
        "INVALID_ARGUMENT",
        "input 'X' is missing",
    ),
    "no name": (service_pb2.ModelInferRequest(), "NOT_FOUND", "no model ''"),
}


def test_bytes_that_are_no_message(served: Served) -> None:
    """Refused as a mistake of the client; a stream goes on after them."""
    with grpc.insecure_channel(served.grpc) as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError) as caught:
            infer(b"\xff\xff")
        assert grpc.StatusCode.INVALID_ARGUMENT == caught.value.code()
        assert "no ModelInferRequest" in caught.value.details()
        stream = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
        good = request(raw_input_contents=[bytes(8)]).SerializeToString()
        found = [
            service_pb2.ModelStreamInferResponse.FromString(item)
            for item in stream(iter([b"\xff\xff", good]))
        ]
        assert "no ModelInferRequest" in found[0].error_message
        assert [bytes(8)] == list(found[1].infer_response.raw_output_contents)


@pytest.mark.parametrize("case", BAD)
def test_bad_requests(stub: Any, case: str) -> None:
    """The right status, and a message that names the tensor."""
    asked, code, says = BAD[case]
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(asked)
    assert (grpc.StatusCode[code], True) == (caught.value.code(), says in caught.value.details())


def test_what_is_not_offered(stub: Any) -> None:
    """UNIMPLEMENTED."""
    with pytest.raises(grpc.RpcError) as missing:
        stub.CudaSharedMemoryRegister(service_pb2.CudaSharedMemoryRegisterRequest())
    assert grpc.StatusCode.UNIMPLEMENTED == missing.value.code()


def test_too_late(client: triton.InferenceServerClient) -> None:
    """A deadline that cannot be met is the client's own, and nothing breaks."""
    x = given("X", np.ones((1, 2), np.float32))
    with pytest.raises(InferenceServerException, match=r"[Dd]eadline"):
        client.infer("same-fp32", [x], client_timeout=1e-6)
    assert client.infer("same-fp32", [x]).as_numpy("Y").shape == (1, 2)


async def test_the_asyncio_client(served: Served) -> None:
    """Triton's other client for gRPC: infer, readiness, errors."""
    x = given("X", np.ones((1, 2), np.float32))
    async with triton_aio.InferenceServerClient(served.grpc) as client:
        assert await client.is_server_ready()
        answer = await client.infer("same-fp32", [x])
        assert (1, 2) == answer.as_numpy("Y").shape
        with pytest.raises(InferenceServerException, match="input 'INDEX' is missing"):
            await client.infer("picky", [])


def test_the_repository(client: triton.InferenceServerClient) -> None:
    """A file is sent along, listed, answered by, unloaded and loaded again."""
    node = tiny.helper.make_node("Identity", ["X"], ["Y"])
    ports = {"X": ("FP32", ("n", 2))}
    data = tiny.model([node], ports, {"Y": ports["X"]}).SerializeToString()
    client.load_model("pushed", config="{}", files={"file:1/model.onnx": data})
    tensor = given("X", np.ones((1, 2), np.float32))
    answer = client.infer("pushed", [tensor], model_version="1")
    assert ("1", 1.0) == (answer.get_response().model_version, answer.as_numpy("Y")[0, 0])
    states = {
        (item.name, item.version): item.state for item in client.get_model_repository_index().models
    }
    assert ("READY", "READY") == (states["pushed", "1"], states["doubling", "3"])
    client.unload_model("pushed")
    [item] = [one for one in client.get_model_repository_index().models if one.name == "pushed"]
    assert ("UNAVAILABLE", "unloaded") == (item.state, item.reason)
    with pytest.raises(InferenceServerException, match="NOT_FOUND"):
        client.infer("pushed", [tensor])
    client.load_model("pushed")
    assert client.is_model_ready("pushed")
    with pytest.raises(InferenceServerException, match="NOT_FOUND"):
        client.load_model("nobody")
    client.load_model("pushed", config='{"max_batch_size": 4}')
    assert 4 == client.get_model_config("pushed").config.max_batch_size
    answer = client.infer("pushed", [tensor])
    assert ("2", 1.0) == (answer.get_response().model_version, answer.as_numpy("Y")[0, 0])
    with pytest.raises(InferenceServerException, match="INVALID_ARGUMENT"):
        client.load_model("pushed", config='{"backend": "python"}')
    evil = {"file:1/model.onnx": hostile.external("../secret")}
    with pytest.raises(InferenceServerException, match="keeps weights in other files"):
        client.load_model("evil", config="{}", files=evil)
