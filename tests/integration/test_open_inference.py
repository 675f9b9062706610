"""The Open Inference Protocol over HTTP, with the client that Triton's users have."""

import gzip
import json
import re
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from services.gateway.inference.service import extensions
from tests.support.inference import BODY_BYTES_MAX, DTYPES, Served, blocks


pytestmark = pytest.mark.nats
JSON_BYTES = "Inference-Header-Content-Length"


@pytest.fixture
def client(served: Served) -> Iterator[triton.InferenceServerClient]:
    """Return Triton's own client."""
    client = triton.InferenceServerClient(served.address)
    yield client
    client.close()


@pytest.fixture
def http(served: Served) -> Iterator[httpx.Client]:
    """Return a plain client."""
    with httpx.Client(base_url=f"http://{served.address}", timeout=30) as client:
        yield client


def given(name: str, array: NDArray[Any], *, binary: bool = True) -> triton.InferInput:
    """Return an input of Triton's client."""
    datatype = next(word for word, dtype in DTYPES.items() if array.dtype == dtype)
    tensor = triton.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def test_who_is_there(client: triton.InferenceServerClient) -> None:
    """Life, readiness, metadata: only extensions that work are named."""
    assert client.is_server_live()
    assert client.is_server_ready()
    metadata = client.get_server_metadata()
    assert ("clawdbot", list(extensions(shared_memory=True))) == (
        metadata["name"],
        metadata["extensions"],
    )


def test_models(client: triton.InferenceServerClient) -> None:
    """A model's signature, by version; a model whose file is absent is not ready."""
    expected = {
        "name": "doubling",
        "versions": ["3"],
        "platform": "clawdbot_onnx",
        "inputs": [{"name": name, "datatype": "FP32", "shape": [-1, 3]} for name in ("A", "B")],
        "outputs": [
            {"name": name, "datatype": "FP32", "shape": [-1, 3]} for name in ("SUM", "TWICE")
        ],
    }
    assert expected == client.get_model_metadata("doubling")
    assert expected == client.get_model_metadata("doubling", "3")
    found = [client.is_model_ready(*name) for name in (("doubling",), ("doubling", "3"))]
    assert [True, True] == found
    for name in (("absent",), ("nobody",), ("doubling", "4"), ("template",)):
        assert not client.is_model_ready(*name)
    with pytest.raises(InferenceServerException, match="no version '4' of model 'doubling'") as e:
        client.get_model_metadata("doubling", "4")
    assert "404" == e.value.status()


@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("datatype", DTYPES)
def test_every_datatype(
    client: triton.InferenceServerClient, datatype: str, binary_in: bool, binary_out: bool
) -> None:
    """There and back through a model that changes nothing, as bytes and as JSON."""
    dtype: Any = DTYPES[datatype]
    array = (
        np.array([["é", ""], ["b", "c" * 300]], np.object_)
        if datatype == "BYTES"
        else np.array([[0, 1], [100, 7]]).astype(dtype)
    )
    if datatype == "FP16" and not (binary_in and binary_out):
        if binary_in:
            wanted = [triton.InferRequestedOutput("Y", binary_data=False)]
            with pytest.raises(InferenceServerException, match="JSON cannot carry FP16"):
                client.infer("same-fp16", [given("X", array)], outputs=wanted)
        return  # the client itself refuses to write it as JSON
    wanted = [triton.InferRequestedOutput("Y", binary_data=binary_out)]
    answer = client.infer(
        f"same-{datatype.lower()}", [given("X", array, binary=binary_in)], outputs=wanted
    )
    found = answer.as_numpy("Y")
    if datatype == "BYTES":
        found = np.array(
            [item.decode() if isinstance(item, bytes) else item for item in found.reshape(-1)],
            np.object_,
        ).reshape(found.shape)
    assert np.array_equal(array, found)
    assert datatype == answer.get_output("Y")["datatype"]


def test_what_is_asked_for(client: triton.InferenceServerClient) -> None:
    """Id, version, outputs in the order asked for, priority and timeout."""
    a, b = np.ones((2, 3), np.float32), np.arange(6, dtype=np.float32).reshape(2, 3)
    answer = client.infer(
        "doubling",
        [given("B", b), given("A", a, binary=False)],
        model_version="3",
        request_id="mine",
        outputs=[triton.InferRequestedOutput("TWICE"), triton.InferRequestedOutput("SUM", False)],
        priority=1,
        timeout=5_000_000,
    )
    response = answer.get_response()
    assert ("mine", "doubling", "3") == tuple(
        response[name] for name in ("id", "model_name", "model_version")
    )
    assert ["TWICE", "SUM"] == [output["name"] for output in response["outputs"]]
    assert np.array_equal(2 * a, answer.as_numpy("TWICE"))
    assert np.array_equal(a + b, answer.as_numpy("SUM"))


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed(client: triton.InferenceServerClient, algorithm: str) -> None:
    """Both ways."""
    a = np.ones((8, 3), np.float32)
    answer = client.infer(
        "doubling",
        [given("A", a), given("B", a)],
        request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )
    assert np.array_equal(2 * a, answer.as_numpy("SUM"))


def test_models_that_take_no_tensors(client: triton.InferenceServerClient) -> None:
    """Text, JSON and files are BYTES of one element; parameters are the engine's."""
    text = given("text", np.array(["turn on the lights"], np.object_))
    answer = client.infer("intent-small", [text], parameters={"min_confidence": 0.2})
    assert b"lights" == answer.as_numpy("intent")[0]
    assert json.loads(answer.as_numpy("confidence")[0]) > 0.2
    answer = client.infer("embedding-small", [given("text", np.array(['"lights on"'], np.object_))])
    assert (1, 64) == answer.as_numpy("embedding").shape
    with pytest.raises(InferenceServerException, match="no parameter 'warmth'"):
        client.infer("intent-small", [text], parameters={"warmth": 1})


def test_a_raw_body(client: triton.InferenceServerClient, http: httpx.Client) -> None:
    """Without JSON the body is the one input: its open dimension is as large as it must be."""
    data = np.arange(6, dtype=np.float32)
    answer = http.post(
        "/v2/models/same-fp32/infer", content=data.tobytes(), headers={JSON_BYTES: "0"}
    )
    size = int(answer.headers[JSON_BYTES])
    assert [3, 2] == json.loads(answer.content[:size])["outputs"][0]["shape"]
    assert data.tobytes() == answer.content[size:]
    answer = http.post("/v2/models/echo/infer", content=b"hello", headers={JSON_BYTES: "0"})
    assert answer.content.endswith(b"hello")


def test_bf16_needs_bytes(http: httpx.Client) -> None:
    """There and back, also its classes; as JSON it is refused, as FP16 is."""
    data = b"\xc0\x3f\x00\xc0\x80\x3e\x80\x47"  # 1.5, -2, 0.25, 65536
    address = "/v2/models/same-bf16/infer"
    answer = http.post(address, content=data, headers={JSON_BYTES: "0"})
    assert data == answer.content[int(answer.headers[JSON_BYTES]) :]
    tensor = {
        "name": "X",
        "shape": [2, 2],
        "datatype": "BF16",
        "parameters": {"binary_data_size": 8},
    }
    document: dict[str, Any] = {"inputs": [tensor], "outputs": [{"name": "Y"}]}
    text = json.dumps(document).encode()
    answer = http.post(address, content=text + data, headers={JSON_BYTES: str(len(text))})
    assert (400, True) == (answer.status_code, "cannot carry BF16" in answer.text)
    document["outputs"][0]["parameters"] = {"classification": 1}
    text = json.dumps(document).encode()
    answer = http.post(address, content=text + data, headers={JSON_BYTES: str(len(text))})
    assert ["65536.000000:3"] == answer.json()["outputs"][0]["data"]


def test_nan_needs_bytes(client: triton.InferenceServerClient) -> None:
    """They come back as they went; as JSON they are refused instead of changed."""
    array = np.array([[np.nan, np.inf]], np.float32)
    found = client.infer("same-fp32", [given("X", array)]).as_numpy("Y")
    assert np.array_equal(array, found, equal_nan=True)
    wanted = [triton.InferRequestedOutput("Y", binary_data=False)]
    with pytest.raises(InferenceServerException, match="NaN or infinite"):
        client.infer("same-fp32", [given("X", array)], outputs=wanted)


def test_what_the_model_cannot_compute(served: Served) -> None:
    """500 for the one, while its mates in the batch are computed."""
    results: dict[int, object] = {}

    def ask(index: int) -> None:
        mine = triton.InferenceServerClient(served.address)
        tensor = given("INDEX", np.array([[index]], np.int64))
        try:
            results[index] = int(mine.infer("picky", [tensor]).as_numpy("VALUE")[0, 0])
        except InferenceServerException as error:
            results[index] = error.status()
        mine.close()

    threads = [threading.Thread(target=ask, args=(index,)) for index in [*range(10), 99, -99]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert {**{index: 10 * index for index in range(10)}, 99: "500", -99: "500"} == results


def good() -> dict[str, Any]:
    """Return a request that works."""
    tensor = {"shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}
    return {"inputs": [{"name": "A", **tensor}, {"name": "B", **tensor}]}


def change(path: str, value: Any) -> Callable[[], dict[str, Any]]:
    """Return a function that makes a request with one thing changed: `inputs.0.shape`."""

    def made() -> dict[str, Any]:
        document: Any = good()
        *way, last = [int(part) if part.isdecimal() else part for part in path.split(".")]
        place = document
        for part in way:
            place = place[part]
        if value is ...:
            del place[last]
        elif isinstance(place, list) and last == len(place):
            place.append(value)
        else:
            place[last] = value
        return document  # type: ignore[no-any-return]

    return made


EXTRA = {"name": "C", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}
BAD: list[tuple[str, Any, int, str]] = [
    (
        "another datatype",
        change("inputs.0.datatype", "FP64"),
        400,
        "input 'A': the datatype is FP32",
    ),
    ("no datatype", change("inputs.0.datatype", ...), 400, r"inputs\[0\]\.datatype"),
    ("unknown datatype", change("inputs.0.datatype", "FP8"), 400, "unknown datatype 'FP8'"),
    ("a datatype that is no word", change("inputs.0.datatype", 7), 400, r"inputs\[0\]\.datatype"),
    ("FP16 as JSON", change("inputs.0.datatype", "FP16"), 400, "JSON cannot carry FP16"),
    ("fewer dimensions", change("inputs.0.shape", [3]), 400, r"the shape is \[-1, 3\], not \[3\]"),
    ("another inner shape", change("inputs.0.shape", [3, 1]), 400, "the shape is"),
    ("no shape", change("inputs.0.shape", ...), 400, r"inputs\[0\]\.shape"),
    ("a negative dimension", change("inputs.0.shape", [-1, 3]), 400, r"inputs\[0\]\.shape\[0\]"),
    (
        "a dimension that is no number",
        change("inputs.0.shape", ["1", 3]),
        400,
        r"inputs\[0\]\.shape\[0\]",
    ),
    (
        "a dimension that is true",
        change("inputs.0.shape", [True, 3]),
        400,
        r"inputs\[0\]\.shape\[0\]",
    ),
    ("a broken dimension", change("inputs.0.shape", [1.5, 3]), 400, r"inputs\[0\]\.shape\[0\]"),
    ("a shape that is no list", change("inputs.0.shape", 3), 400, r"inputs\[0\]\.shape"),
    ("2^31 rows", change("inputs.0.shape", [2**31, 3]), 400, "needs 6442450944 elements"),
    ("2^63 rows", change("inputs.0.shape", [2**63, 3]), 400, r"inputs\[0\]\.shape\[0\]"),
    ("rows past counting", change("inputs.0.shape", [2**62] * 16), 400, "more elements than"),
    ("17 dimensions", change("inputs.0.shape", [1] * 17), 400, r"inputs\[0\]\.shape"),
    (
        "no rows",
        change("inputs.0", {**EXTRA, "name": "A", "shape": [0, 3], "data": []}),
        400,
        "first dimension",
    ),
    ("too few elements", change("inputs.0.data", [1, 2]), 400, "needs 3 elements, data has 2"),
    ("too many elements", change("inputs.0.data", [1, 2, 3, 4]), 400, "data has 4"),
    ("no data", change("inputs.0.data", ...), 400, "data must be a list"),
    ("data that is no list", change("inputs.0.data", "AAAA"), 400, "data must be a list"),
    ("nested as another shape", change("inputs.0.data", [[1], [2], [3]]), 400, "nested as"),
    ("ragged", change("inputs.0.data", [[1, 2], [3]]), 400, "does not nest"),
    ("half nested", change("inputs.0.data", [[1, 2, 3], 4]), 400, "does not nest"),
    ("nested too deep", change("inputs.0.data", [[[[1, 2, 3]]]]), 400, "nest"),
    (
        "strings for numbers",
        change("inputs.0.data", ["1", "2", "3"]),
        400,
        "elements of FP32 are numbers",
    ),
    ("truths for numbers", change("inputs.0.data", [True, 2, 3]), 400, "are numbers"),
    ("null for a number", change("inputs.0.data", [None, 2, 3]), 400, "are numbers"),
    ("past FP32", change("inputs.0.data", [1e300, 2, 3]), 400, "out of the range of FP32"),
    (
        "an unknown name",
        change("inputs.0.name", "X"),
        400,
        "unknown input 'X'; the model takes A, B",
    ),
    ("an input twice", change("inputs.1.name", "A"), 400, "there twice"),
    ("an input missing", change("inputs.1", ...), 400, "input 'B' is missing"),
    ("an input too many", change("inputs.2", EXTRA), 400, "unknown input 'C'"),
    ("no inputs", change("inputs", ...), 400, "inputs"),
    ("inputs that are no list", change("inputs", {}), 400, "inputs"),
    ("an unknown field", change("imputs", []), 400, "imputs"),
    ("an id that is no text", change("id", 7), 400, "id"),
    ("an unknown output", change("outputs", [{"name": "Z"}]), 400, "unknown output 'Z'"),
    ("an output twice", change("outputs", [{"name": "SUM"}] * 2), 400, "asked for twice"),
    (
        "classes that are no number",
        change("outputs", [{"name": "SUM", "parameters": {"classification": "2"}}]),
        400,
        "output 'SUM': 'classification' must be a whole number",
    ),
    ("a sequence", change("parameters", {"sequence_id": 7}), 400, "this model keeps no state"),
    ("a sequence that is none", change("parameters", {"sequence_id": 1.5}), 400, "'sequence_id'"),
    (
        "the start of no sequence",
        change("parameters", {"sequence_start": True}),
        400,
        "a sequence needs a 'sequence_id'",
    ),
    ("a start that is none", change("parameters", {"sequence_start": 1}), 400, "true or false"),
    (
        "a region that is not there",
        change(
            "inputs.0",
            {
                "name": "A",
                "shape": [1, 3],
                "datatype": "FP32",
                "parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 12},
            },
        ),
        404,
        "no shared memory region 'r'",
    ),
    (
        "a region and data",
        change("inputs.0.parameters", {"shared_memory_region": "r", "shared_memory_byte_size": 12}),
        400,
        "not two of them",
    ),
    (
        "a region without a size",
        change("inputs.0.parameters", {"shared_memory_region": "r"}),
        400,
        "'shared_memory_byte_size'",
    ),
    (
        "a size without a region",
        change("inputs.0.parameters", {"shared_memory_byte_size": 12}),
        400,
        "'shared_memory_region'",
    ),
    (
        "a region before its begin",
        change(
            "inputs.0.parameters",
            {"shared_memory_region": "r", "shared_memory_byte_size": 1, "shared_memory_offset": -1},
        ),
        400,
        "'shared_memory_offset'",
    ),
    (
        "an output into no region",
        change(
            "outputs",
            [
                {
                    "name": "SUM",
                    "parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 12},
                }
            ],
        ),
        404,
        "no shared memory region 'r'",
    ),
    ("a priority that is none", change("parameters", {"priority": -1}), 400, "'priority'"),
    ("a timeout that is none", change("parameters", {"timeout": "soon"}), 400, "'timeout'"),
    ("a flag that is none", change("parameters", {"binary_data_output": 1}), 400, "true or false"),
    ("an unknown parameter", change("parameters", {"warmth": 1}), 400, "no parameter 'warmth'"),
    ("a parameter that is a list", change("parameters", {"warmth": []}), 400, "parameters"),
    (
        "too many rows",
        lambda: {
            "inputs": [{**item, "shape": [9, 3], "data": [1] * 27} for item in good()["inputs"]]
        },
        400,
        "1 to 8 rows",
    ),
    (
        "rows that differ",
        change("inputs.0", {**EXTRA, "name": "A", "shape": [2, 3], "data": [1] * 6}),
        400,
        "first dimension",
    ),
    (
        "bytes announced, none sent",
        change(
            "inputs.0",
            {
                "name": "A",
                "shape": [1, 3],
                "datatype": "FP32",
                "parameters": {"binary_data_size": 12},
            },
        ),
        400,
        "0 bytes are left",
    ),
    ("a list", list, 400, "JSON object"),
    ("a number", lambda: 7, 400, "JSON object"),
]


@pytest.mark.parametrize(
    ("document", "status", "says"), [row[1:] for row in BAD], ids=[row[0] for row in BAD]
)
def test_bad_json(http: httpx.Client, document: Any, status: int, says: str) -> None:
    """What is wrong with which tensor, in the protocol's own shape."""
    answer = http.post("/v2/models/doubling/infer", json=document())
    assert (status, {"error"}) == (answer.status_code, set(answer.json()))
    assert re.search(says, answer.json()["error"]), answer.json()


def packed(size: int, blob: bytes, **rest: Any) -> tuple[bytes, dict[str, str]]:
    """Return a request for `same-fp32` whose input is behind the JSON, and its headers."""
    tensor = {
        "name": "X",
        "shape": [1, 2],
        "datatype": "FP32",
        "parameters": {"binary_data_size": size},
    }
    text = json.dumps({"inputs": [{**tensor, **rest}]}).encode()
    return text + blob, {JSON_BYTES: str(len(text))}


BAD_BYTES: list[tuple[str, str, tuple[bytes, dict[str, str]], int, str]] = [
    ("truncated", "same-fp32", packed(8, bytes(7)), 400, "binary_data_size is 8, but 7 bytes"),
    ("left over", "same-fp32", packed(8, bytes(9)), 400, "1 bytes behind the JSON"),
    (
        "too few for the shape",
        "same-fp32",
        packed(4, bytes(4)),
        400,
        "needs 8 bytes, the tensor has 4",
    ),
    ("mixed", "same-fp32", packed(8, bytes(8), data=[1, 2]), 400, "not both"),
    ("negative size", "same-fp32", packed(-1, b""), 400, "number of bytes"),
    ("size that is true", "same-fp32", packed(True, bytes(1)), 400, "number of bytes"),
    ("huge size", "same-fp32", packed(2**62, bytes(8)), 400, "but 8 bytes are left"),
    (
        "2^31 rows",
        "same-fp32",
        packed(8, bytes(8), shape=[2**31, 2]),
        400,
        "needs 17179869184 bytes",
    ),
    ("header past the end", "same-fp32", (b"{}", {JSON_BYTES: "3"}), 400, "3 are JSON"),
    (
        "header in the middle",
        "same-fp32",
        (packed(8, bytes(8))[0], {JSON_BYTES: "9"}),
        400,
        "not JSON",
    ),
    ("header that is no number", "same-fp32", (b"{}", {JSON_BYTES: "two"}), 400, JSON_BYTES),
    ("negative header", "same-fp32", (b"{}", {JSON_BYTES: "-1"}), 400, JSON_BYTES),
    ("endless header", "same-fp32", (b"{}", {JSON_BYTES: "9" * 40}), 400, JSON_BYTES),
    ("raw of another size", "same-fp32", (bytes(7), {JSON_BYTES: "0"}), 400, "needs 0 bytes"),
    ("raw for two inputs", "doubling", (bytes(12), {JSON_BYTES: "0"}), 400, "model of one input"),
    ("text cut off", "same-bytes", packed(3, b"\5\0\0", datatype="BYTES"), 400, "cut off"),
    (
        "text that is longer",
        "same-bytes",
        packed(5, b"\x05\0\0\0a", datatype="BYTES"),
        400,
        "says it has 5",
    ),
    (
        "one text too few",
        "same-bytes",
        packed(5, b"\1\0\0\0a", datatype="BYTES"),
        400,
        "needs 2 BYTES",
    ),
    (
        "text that is none",
        "same-bytes",
        packed(10, b"\1\0\0\0\xff\1\0\0\0\xff", datatype="BYTES"),
        400,
        "UTF-8",
    ),
    ("empty", "same-fp32", (b"", {}), 400, "not JSON"),
    ("not JSON", "same-fp32", (b"{'a'}", {}), 400, "line 1 column"),
    (
        "NaN as JSON",
        "same-fp32",
        (b'{"inputs":[{"name":"X","shape":[1,2],"datatype":"FP32","data":[NaN,1]}]}', {}),
        400,
        "not JSON",
    ),
    (
        "nested for ever",
        "same-fp32",
        (b'{"inputs":' + b"[" * 5000 + b"]" * 5000 + b"}", {}),
        400,
        "",
    ),
    ("not gzip", "same-fp32", (b"{}", {"content-encoding": "gzip"}), 400, "not gzip"),
    (
        "half a gzip",
        "same-fp32",
        (gzip.compress(b"{}" * 99)[:-9], {"content-encoding": "gzip"}),
        400,
        "cut off",
    ),
    (
        "a bomb",
        "same-fp32",
        (zlib.compress(bytes(64 * 1024 * 1024)), {"content-encoding": "deflate"}),
        413,
        "unpacks",
    ),
    ("another encoding", "same-fp32", (b"{}", {"content-encoding": "br"}), 415, "gzip or deflate"),
    ("too large", "same-fp32", (bytes(BODY_BYTES_MAX + 1), {}), 413, "at most"),
    ("unknown model", "nobody", (b"{}", {}), 404, "no model 'nobody'"),
    ("hidden model", "template", (b"{}", {}), 404, "no model 'template'"),
    ("unknown version", "doubling/versions/9", (b"{}", {}), 404, "no version '9'"),
    (
        "a model without its file",
        "absent",
        (b'{"inputs":[{"name":"X","shape":[2],"datatype":"FP32","data":[1,2]}]}', {}),
        503,
        "no file",
    ),
]


@pytest.mark.parametrize(
    ("model", "request_", "status", "says"),
    [row[1:] for row in BAD_BYTES],
    ids=[row[0] for row in BAD_BYTES],
)
def test_bad_bodies(
    http: httpx.Client, model: str, request_: tuple[bytes, dict[str, str]], status: int, says: str
) -> None:
    """Truncated, left over, mixed, unpacked too large, for models that are not there."""
    content, headers = request_
    answer = http.post(f"/v2/models/{model}/infer", content=content, headers=headers)
    assert status == answer.status_code, answer.text
    assert says in answer.json()["error"]


def test_addresses_that_are_not_there(http: httpx.Client) -> None:
    """In the same shape."""
    for method, path, status in (
        ("GET", "/v2/nothing", 404),
        ("GET", "/v2/models/echo/infer", 404),
        ("POST", "/v2/models/echo/ready", 405),
    ):
        answer = http.request(method, path)
        assert (status, {"error"}) == (answer.status_code, set(answer.json()))


def test_the_guide_works_as_it_stands(served: Served, http: httpx.Client) -> None:
    """docs/inference.md: the catalogue entry, the Python, and what curl sends."""
    [script] = blocks("python")
    done = subprocess.run(  # noqa: S603 - our own documentation
        [sys.executable, "-c", script.replace("127.0.0.1:8080", served.address)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "[0 2]" == done.stdout.strip()
    command = next(block for block in blocks("text") if "/infer" in block)
    answer = http.post("/v2/models/iris/infer", content=command.split("'")[1])
    [output] = answer.json()["outputs"]
    assert ("probabilities", [1, 3]) == (output["name"], output["shape"])
    assert pytest.approx(1.0) == sum(output["data"])


def test_many_at_once_are_computed_together(served: Served) -> None:
    """Everybody gets their own, and the worker's log shows batches of more than one."""

    def ask(index: int) -> None:
        with httpx.Client(base_url=f"http://{served.address}", timeout=30) as client:
            for turn in range(20):
                number = float(100 * index + turn)
                tensor = {"shape": [1, 3], "datatype": "FP32", "data": [number] * 3}
                inputs = [{"name": "A", **tensor}, {"name": "B", **tensor}]
                answer = client.post("/v2/models/doubling/infer", json={"inputs": inputs})
                wrong.extend(
                    output
                    for output in answer.json()["outputs"]
                    if output["data"] != [2 * number] * 3
                )

    wrong: list[Any] = []
    threads = [threading.Thread(target=ask, args=(index,)) for index in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [] == wrong
    lines = served.mesh.services["text"].log.read_text().splitlines()
    sizes = [json.loads(line).get("batch_size", 0) for line in lines if '"batch_size"' in line]
    assert max(sizes) > 1


async def test_the_asyncio_client(served: Served) -> None:
    """Triton's other client for HTTP, on aiohttp: infer, metadata, readiness, errors."""
    row = np.ones((1, 3), np.float32)
    async with triton_aio.InferenceServerClient(served.address) as client:
        inputs = []
        for name in ("A", "B"):
            inputs.append(triton_aio.InferInput(name, [1, 3], "FP32"))
            inputs[-1].set_data_from_numpy(row)
        assert await client.is_model_ready("doubling")
        answer = await client.infer("doubling", inputs)
        assert np.array_equal(2 * row, answer.as_numpy("SUM"))
        with pytest.raises(InferenceServerException, match="input 'B' is missing"):
            await client.infer("doubling", inputs[:1])
