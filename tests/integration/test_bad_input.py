"""Everything malformed gets a 4xx that names the field and the fix, and the mesh stays healthy."""

import base64
import dataclasses
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import ormsgpack
import pytest

from schemas.wav import encode
from tests.integration.conftest import Running


pytestmark = pytest.mark.nats
BROKEN = Path(__file__).resolve().parents[3] / "shared" / "data" / "speech-malformed"
ANSWER_S = 5.0
"""Far above the second that the product promises: the machines that run this are busy."""

ECHO = {"id": "a", "type": "model", "params": {"model": "echo"}}
WAV = encode(bytes(3200), 16_000)
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Case:
    """A request that cannot work."""

    name: str
    method: str
    path: str
    status: int
    field: str | None
    """Of the error; None where the request as a whole is to blame."""
    word: str
    """Something the message must say."""
    content: bytes | None = None
    json: Any = None
    files: Any = None
    headers: dict[str, str] = dataclasses.field(default_factory=dict)


def definition(*nodes: Any, edges: Any = (), **rest: Any) -> dict[str, Any]:
    """Return a deployment."""
    return {"name": "bad", "definition": {"nodes": list(nodes), "edges": list(edges), **rest}}


def node(**changes: Any) -> dict[str, Any]:
    """Return the echo node with changes."""
    return {**ECHO, **changes}


def _deploy(name: str, document: Any, where: str | None, word: str, status: int = 400) -> Case:
    return Case(f"deploy {name}", "POST", "/v1/workflows", status, where, word, json=document)


def _raw(name: str, content: bytes, where: str | None, word: str, **headers: str) -> Case:
    sent = {"Content-Type": "application/json"} | headers
    return Case(
        f"deploy {name}", "POST", "/v1/workflows", 400, where, word, content=content, headers=sent
    )


def edge(source: str, target: str) -> dict[str, str]:
    """Return an edge."""
    return {"source": source, "target": target}


A, B = ECHO, node(id="b")
NODES = "definition.nodes"
DEPLOYMENTS = (
    _raw("truncated JSON", b'{"name": "x", "definition": {', "body", "JSON"),
    _raw("no JSON", b"nodes: []", "body", "JSON"),
    _raw("not UTF-8", b'{"name": "\xff"}', "body", "JSON"),
    _raw("NaN", b'{"name": NaN}', "body", "JSON"),
    _raw("deep nesting", b"[" * 5000 + b"]" * 5000, "body", ""),
    _raw("an array", b"[]", "body", "object"),
    _raw("nothing", b"", "body", "JSON"),
    Case(
        "deploy as text",
        "POST",
        "/v1/workflows",
        415,
        "Content-Type",
        "application/json",
        content=b"{}",
        headers={"Content-Type": "text/plain"},
    ),
    Case(
        "deploy too large",
        "POST",
        "/v1/workflows",
        413,
        "body",
        "bytes",
        content=b'{"name": "' + b"x" * 300_000 + b'"}',
        headers=JSON,
    ),
    _deploy("without name", {"definition": {"nodes": [A]}}, "name", "required"),
    _deploy("name with a dot", {"name": "a.b", "definition": {"nodes": [A]}}, "name", "letters"),
    _deploy("name with a star", {"name": "*", "definition": {"nodes": [A]}}, "name", ""),
    _deploy("empty name", {"name": "", "definition": {"nodes": [A]}}, "name", ""),
    _deploy("long name", {"name": "n" * 65, "definition": {"nodes": [A]}}, "name", ""),
    _deploy("name a number", {"name": 5, "definition": {"nodes": [A]}}, "name", "string"),
    _deploy("without definition", {"name": "x"}, "definition", "required"),
    _deploy("unknown field", {**definition(A), "priority": 1}, "priority", ""),
    _deploy("no nodes", definition(), NODES, ""),
    _deploy("nodes an object", {"name": "x", "definition": {"nodes": {}}}, NODES, ""),
    _deploy("too many nodes", definition(*[node(id=f"n{i}") for i in range(257)]), NODES, "256"),
    _deploy("replicas 0", {**definition(A), "replicas": 0}, "replicas", ""),
    _deploy("replicas 65", {**definition(A), "replicas": 65}, "replicas", ""),
    _deploy("replicas text", {**definition(A), "replicas": "3"}, "replicas", ""),
    _deploy("duplicate id", definition(A, A), f"{NODES}[1].id", "twice"),
    _deploy("id with a dot", definition(node(id="a.b")), f"{NODES}[0].id", "letters"),
    _deploy("id with a blank", definition(node(id="a b")), f"{NODES}[0].id", "letters"),
    _deploy("id missing", definition({"type": "model"}), f"{NODES}[0].id", "required"),
    _deploy("unknown type", definition(node(type="script")), f"{NODES}[0].type", "model"),
    _deploy("unknown node field", definition(node(when="x")), f"{NODES}[0].when", ""),
    _deploy(
        "unknown model",
        definition(node(params={"model": "gpt-9"})),
        f"{NODES}[0].params.model",
        "gpt-9",
    ),
    _deploy("no model", definition(node(params={})), f"{NODES}[0].params.model", "model"),
    _deploy(
        "model a number", definition(node(params={"model": 7})), f"{NODES}[0].params.model", "name"
    ),
    _deploy(
        "unknown template",
        definition(node(type="template", params={"template_id": "nope"})),
        f"{NODES}[0].params.template_id",
        "nope",
    ),
    _deploy(
        "template without text",
        definition(node(type="template", params={})),
        f"{NODES}[0].params",
        "template",
    ),
    _deploy(
        "template unclosed",
        definition(node(type="template", params={"template": "{{#a}}x"})),
        f"{NODES}[0].params.template",
        "",
    ),
    _deploy(
        "template partial",
        definition(node(type="template", params={"template": "{{>etc}}"})),
        f"{NODES}[0].params.template",
        "",
    ),
    _deploy(
        "dangling source",
        definition(A, edges=[edge("x", "a")]),
        "definition.edges[0].source",
        "no node 'x'",
    ),
    _deploy(
        "dangling target",
        definition(A, edges=[edge("a", "x")]),
        "definition.edges[0].target",
        "no node 'x'",
    ),
    _deploy("self edge", definition(A, edges=[edge("a", "a")]), "definition.edges[0]", "itself"),
    _deploy(
        "repeated edge",
        definition(A, B, edges=[edge("a", "b")] * 2),
        "definition.edges[1]",
        "twice",
    ),
    _deploy(
        "cycle",
        definition(A, B, edges=[edge("a", "b"), edge("b", "a")]),
        "definition.edges",
        "cycle",
    ),
    _deploy(
        "edge without target",
        definition(A, edges=[{"source": "a"}]),
        "definition.edges[0].target",
        "required",
    ),
    _deploy(
        "unknown source of an input",
        definition(node(inputs={"text": "ghost.text"})),
        f"{NODES}[0].inputs.text",
        "ghost",
    ),
    _deploy(
        "unknown input",
        definition(node(inputs={"sound": "input.x"})),
        f"{NODES}[0].inputs.sound",
        "sound",
    ),
    _deploy("timeout 0", definition(node(timeout_s=0)), f"{NODES}[0].timeout_s", ""),
    _deploy("timeout for ever", definition(node(timeout_s=1e9)), f"{NODES}[0].timeout_s", ""),
    _deploy(
        "11 attempts",
        definition(node(retry={"max_attempts": 11})),
        f"{NODES}[0].retry.max_attempts",
        "",
    ),
)


def _run(name: str, where: str | None, word: str, status: int = 400, **request: Any) -> Case:
    workflow = request.pop("workflow", "bad_echo")
    return Case(
        f"run {name}", "POST", f"/v1/workflows/{workflow}/runs", status, where, word, **request
    )


def _wav(name: str, data: bytes, word: str) -> Case:
    headers = {"Content-Type": "audio/wav"}
    return _run(name, "inputs.audio", word, workflow="bad_asr", content=data, headers=headers)


def _image(name: str, data: bytes) -> Case:
    headers = {"Content-Type": "image/png"}
    return _run(name, "inputs.image", "image", workflow="bad_ocr", content=data, headers=headers)


def _patched(offset: int, form: str, value: int) -> bytes:
    data = bytearray(WAV)
    struct.pack_into(form, data, offset, value)
    return bytes(data)


TEXT = {"text": "x"}
B64 = base64.b64encode(b"x").decode()
SUBMISSIONS = (
    _run("of an unknown workflow", "workflow", "deploy it", 404, workflow="ghost", json={}),
    _run("of a name that is none", "name", "letters", workflow="a.b", json={}),
    _run("truncated JSON", "body", "JSON", content=b'{"inputs":', headers=JSON),
    _run(
        "deep JSON",
        "body",
        "",
        content=b'{"inputs":{"text":' + b"[" * 900 + b"]" * 900 + b"}}",
        headers=JSON,
    ),
    _run("inputs an array", "inputs", "object", json={"inputs": []}),
    _run("unknown field", "input", "inputs", json={"input": TEXT}),
    _run("missing input", "inputs.text", "needs", json={"inputs": {}}),
    _run("unknown input", "inputs.sound", "no input", json={"inputs": {**TEXT, "sound": 1}}),
    _run("text a number", "inputs.text", "string", json={"inputs": {"text": 5}}),
    _run("text null", "inputs.text", "string", json={"inputs": {"text": None}}),
    _run(
        "binary for text",
        "inputs.text",
        "string",
        json={"inputs": {"text": {"$binary": {"media_type": "text/plain", "data": B64}}}},
    ),
    _run(
        "no base64",
        "inputs.audio.$binary.data",
        "base64",
        workflow="bad_asr",
        json={"inputs": {"audio": {"$binary": {"media_type": "audio/wav", "data": "%%"}}}},
    ),
    _run(
        "binary without data",
        "inputs.audio.$binary.data",
        "required",
        workflow="bad_asr",
        json={"inputs": {"audio": {"$binary": {"media_type": "audio/wav"}}}},
    ),
    _run(
        "blob with a bad hash",
        "inputs.audio.$blob.sha256",
        "",
        workflow="bad_asr",
        json={
            "inputs": {
                "audio": {"$blob": {"media_type": "audio/wav", "size_bytes": 1, "sha256": "xyz"}}
            }
        },
    ),
    _run(
        "tensor of the wrong size",
        "inputs.query.$tensor.data",
        "bytes",
        workflow="bad_rank",
        json={
            "inputs": {
                "query": {"$tensor": {"datatype": "FP32", "shape": [2, 2], "data": B64}},
                "items": {"$tensor": {"datatype": "FP32", "shape": [0, 2], "data": ""}},
            }
        },
    ),
    _run(
        "tensor of no type",
        "inputs.query.$tensor.datatype",
        "FP32",
        workflow="bad_rank",
        json={"inputs": {"query": {"$tensor": {"datatype": "F4", "shape": [1], "data": B64}}}},
    ),
    _run(
        "tensor with a negative shape",
        "inputs.query.$tensor.shape.0",
        "",
        workflow="bad_rank",
        json={"inputs": {"query": {"$tensor": {"datatype": "FP32", "shape": [-1], "data": ""}}}},
    ),
    _run(
        "unreadable content type",
        "Content-Type",
        "application/json",
        415,
        content=b"<x/>",
        headers={"Content-Type": "application/xml"},
    ),
    _run(
        "no MessagePack",
        "",
        "MessagePack",
        content=b"\xc1",
        headers={"Content-Type": "application/msgpack"},
    ),
    _run(
        "text that is not UTF-8",
        "body",
        "UTF-8",
        content=b"\xff\xfe",
        headers={"Content-Type": "text/plain"},
    ),
    _run(
        "a part twice", "inputs.text", "twice", files=[("text", (None, "a")), ("text", (None, "b"))]
    ),
    _run("an unknown part", "inputs.x", "no input", files={"x": (None, "a"), "text": (None, "b")}),
    _run(
        "broken multipart",
        None,
        "",
        content=b"--x\r\nnonsense",
        headers={"Content-Type": "multipart/form-data; boundary=x"},
    ),
    _run(
        "multipart without boundary",
        None,
        "",
        content=b"x",
        headers={"Content-Type": "multipart/form-data"},
    ),
    _run(
        "file that is not UTF-8",
        "inputs.text",
        "UTF-8",
        files={"text": ("a.txt", b"\xff\xfe", "text/plain")},
    ),
    _run(
        "raw body for several inputs",
        "Clawdbot-Input",
        "which input the body is",
        workflow="bad_rank",
        content=b"x",
        headers={"Content-Type": "application/octet-stream"},
    ),
    _run(
        "empty key",
        "Idempotency-Key",
        "empty",
        json={"inputs": TEXT},
        headers={"Idempotency-Key": ""},
    ),
    _run(
        "long key",
        "idempotency-key",
        "",
        json={"inputs": TEXT},
        headers={"Idempotency-Key": "k" * 256},
    ),
    _run(
        "run id with a dot",
        "Clawdbot-Run-Id",
        "letters",
        json={"inputs": TEXT},
        headers={"Clawdbot-Run-Id": "a.b"},
    ),
    _run(
        "both names",
        "Clawdbot-Run-Id",
        "either",
        json={"inputs": TEXT},
        headers={"Idempotency-Key": "k", "Clawdbot-Run-Id": "r"},
    ),
    _run("workflow and a newline", "name", "letters", workflow="bad_echo%0A", json={}),
    _run(
        "text too large for a commit",
        "inputs.text",
        "blob",
        413,
        json={"inputs": {"text": "\N{CJK UNIFIED IDEOGRAPH-6F22}" * 300_000}},
    ),
    _run("a text without end", "inputs.text", "524288", json={"inputs": {"text": "x" * 600_000}}),
    _run("an input of a long name", None, "no input", json={"inputs": {"n" * 100_000: "x"}}),
    _run("a number beyond all numbers", "body", "JSON", content=b'{"inputs":{"text":1e999}}'),
    _run("half a surrogate", "body", "JSON", content=b'{"inputs":{"text":"\\ud800"}}'),
    _run(
        "blob that is not there",
        "inputs.audio",
        "/v1/blobs",
        workflow="bad_asr",
        json={
            "inputs": {
                "audio": {"$blob": {"media_type": "audio/wav", "size_bytes": 1, "sha256": "0" * 64}}
            }
        },
    ),
    _run(
        "MessagePack of a tensor of the wrong size",
        "inputs.query.$tensor.data",
        "bytes",
        workflow="bad_rank",
        headers={"Content-Type": "application/msgpack"},
        content=ormsgpack.packb(
            {
                "inputs": {
                    "query": {"$tensor": {"datatype": "FP32", "shape": [5], "data": b"abc"}},
                    "items": {"$tensor": {"datatype": "FP32", "shape": [0, 2], "data": b""}},
                }
            }
        ),
    ),
    _run(
        "MessagePack without a bottom",
        None,
        "MessagePack",
        headers={"Content-Type": "application/msgpack"},
        content=b"\x81\xa6inputs\x81\xa4text" + b"\x91" * 5000 + b"\xc0",
    ),
    _run(
        "file of no type",
        "inputs.audio",
        "media type",
        workflow="bad_asr",
        files={"audio": ("a.wav", WAV, "nonsense")},
    ),
    _run("65 parts", None, "many", files=[(f"t{n}", (None, "a")) for n in range(65)]),
    _wav("sound that is nothing", b"\x00", "WAV"),
    _wav("sound that is an MP3", b"ID3\x04" + bytes(40), "MP3"),
    _wav("sound that is Ogg", b"OggS" + bytes(40), "Ogg"),
    _wav("WAV of a header alone", WAV[:12], "no sound"),
    _wav("WAV without samples", WAV[:44], "no sound"),
    _wav("WAV cut in its format", WAV[:20], ""),
    _wav("WAV of 0 channels", _patched(22, "<H", 0), "channels"),
    _wav("WAV of 99 channels", _patched(22, "<H", 99), "channels"),
    _wav("WAV of 0 Hz", _patched(24, "<I", 0), "samples a second"),
    _wav("WAV of 4 GHz", _patched(24, "<I", 4_000_000_000), "samples a second"),
    _wav("WAV of 0 bits", _patched(34, "<H", 0), "bits"),
    _wav("WAV of µ-law", _patched(20, "<H", 7), "format 7"),
    _wav("WAV of a GIF", b"GIF89a" + bytes(60), "WAV"),
    _image("image that is nothing", b"\x00" * 64),
    _image("image that is text", b"hello, I am a picture"),
    _image("image that is SVG", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
    _image("image that is a PDF", b"%PDF-1.7" + bytes(64)),
)


def _get(path: str, status: int, where: str | None, word: str, **headers: str) -> Case:
    return Case(f"GET {path[:60]}", "GET", path, status, where, word, headers=headers)


QUERIES = (
    _get("/v1/workflows/ghost", 404, "workflow", "deploy"),
    _get("/v1/workflows/a%2Fb", 404, None, ""),
    _get("/v1/workflows/a%20b", 400, "name", "letters"),
    _get("/v1/workflows/bad_echo?version=99", 404, "version", "99"),
    _get("/v1/workflows/bad_echo?version=0", 400, "version", ""),
    _get("/v1/workflows/bad_echo?version=x", 400, "version", "integer"),
    _get("/v1/runs/ghost", 404, "run_id", "ghost"),
    _get("/v1/runs/ghost%0A", 400, "run_id", "letters"),
    _get("/v1/workflows/bad_echo%0A", 400, "name", "letters"),
    _get("/v1/runs/", 404, None, "docs"),
    _get("/v1/runs/a.b", 400, "run_id", "letters"),
    _get("/v1/runs/" + "x" * 65, 400, "run_id", "letters"),
    _get("/v1/runs/ghost/events", 404, "run_id", "ghost"),
    _get("/v1/runs/ghost/replay", 404, "run_id", "ghost"),
    _get("/v1/runs/ghost/replay?until=0", 400, "until", ""),
    _get("/v1/runs?limit=0", 400, "limit", ""),
    _get("/v1/runs?limit=9999", 400, "limit", ""),
    _get("/v1/runs?limit=all", 400, "limit", "integer"),
    _get("/v1/runs?cursor=abc", 400, "cursor", "integer"),
    _get("/v1/runs?status=sleeping", 400, "status", "running"),
    _get("/v1/runs?workflow=a.b", 400, "workflow", "letters"),
    _get("/v1/blobs/abc", 400, "sha256", "64"),
    _get("/v1/blobs/" + "0" * 64, 404, None, "no blob"),
    _get("/v1/nothing", 404, None, "docs"),
    Case("PUT a workflow", "PUT", "/v1/workflows", 405, None, "method"),
    Case("an empty blob", "POST", "/v1/blobs", 400, "body", "bytes", content=b""),
    Case(
        "a blob of no type",
        "POST",
        "/v1/blobs",
        400,
        "Content-Type",
        "media type",
        content=b"x",
        headers={"Content-Type": "nonsense"},
    ),
    Case(
        "control of a ghost",
        "POST",
        "/v1/runs/ghost/control",
        404,
        "run_id",
        "ghost",
        json={"action": "cancel"},
    ),
    Case(
        "control of no kind",
        "POST",
        "/v1/runs/ghost/control",
        400,
        "action",
        "cancel",
        json={"action": "explode"},
    ),
    Case(
        "wait for ever",
        "POST",
        "/v1/workflows/bad_echo/runs?wait=1e9",
        400,
        "wait",
        "300",
        json={"inputs": TEXT},
    ),
    Case(
        "wait backwards",
        "POST",
        "/v1/workflows/bad_echo/runs?wait=-1",
        400,
        "wait",
        "",
        json={"inputs": TEXT},
    ),
    Case(
        "wait nan",
        "POST",
        "/v1/workflows/bad_echo/runs?wait=nan",
        400,
        "wait",
        "",
        json={"inputs": TEXT},
    ),
    Case(
        "wait a word",
        "POST",
        "/v1/workflows/bad_echo/runs?wait=long",
        400,
        "wait",
        "number",
        json={"inputs": TEXT},
    ),
)
CASES = (*DEPLOYMENTS, *SUBMISSIONS, *QUERIES)


@pytest.fixture(scope="module")
def client(running: Running) -> Iterator[httpx.Client]:
    """A client, and the workflows that the cases submit to."""
    models = {
        "bad_echo": "echo",
        "bad_asr": "pocketsphinx",
        "bad_ocr": "rapidocr",
        "bad_rank": "ranking",
    }
    with httpx.Client(base_url=running.url(), timeout=ANSWER_S) as http:
        for name, model in models.items():
            nodes = [{"id": "a", "type": "model", "params": {"model": model}}]
            answer = http.post("/v1/workflows", json={"name": name, "definition": {"nodes": nodes}})
            assert answer.is_success, answer.text
        yield http
        good = http.post("/v1/workflows/bad_echo/runs?wait=5", json={"inputs": TEXT})
        assert good.json()["status"] == "completed", "the mesh is no longer healthy"
        alive = [service.process for service in running.mesh.services.values()]
        assert all(process and process.poll() is None for process in alive)


def test_there_are_enough_cases() -> None:
    """The issue asks for sixty."""
    assert len(CASES) >= 60
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_bad_request_is_refused_with_a_reason(client: httpx.Client, case: Case) -> None:
    """At once, with the field and the fix, without a stack or a path."""
    answer = client.request(
        case.method,
        case.path,
        content=case.content,
        json=case.json,
        files=case.files,
        headers=case.headers,
    )
    assert answer.status_code == case.status, answer.text
    error = answer.json()["error"]
    assert 0 < len(error["message"]) < 1000, error
    assert case.word.lower() in error["message"].lower(), error
    if case.field:
        assert error["field"] == case.field, error
    assert error["request_id"] == answer.headers["X-Request-Id"]
    assert error["retryable"] is False
    for leak in ("Traceback", ".py", "/home", "/usr", "site-packages"):
        assert leak not in answer.text


@pytest.mark.skipif(not BROKEN.is_dir(), reason="the collection of broken recordings is not here")
@pytest.mark.parametrize("name", ["awful", "bad", "evil", "null"])
def test_recordings_broken_on_purpose(client: httpx.Client, name: str) -> None:
    """Refused, or heard as far as they go: never a 5xx, never a run without an end."""
    data = (BROKEN / f"{name}.wav").read_bytes()
    answer = client.post(
        "/v1/workflows/bad_asr/runs?wait=60",
        content=data,
        headers={"Content-Type": "audio/wav"},
        timeout=70,
    )
    if answer.status_code == 400:
        assert answer.json()["error"]["field"] == "inputs.audio"
    else:
        run = answer.json()
        assert (answer.status_code, run["status"]) in {(200, "completed"), (200, "failed")}, run
        assert run["status"] == "completed" or run["error"]["field"] == "inputs.audio"


@pytest.mark.parametrize(
    ("workflow", "kind", "data"),
    [
        ("bad_ocr", "image/png", b"\x89PNG\r\n\x1a\n" + bytes(64)),
        ("bad_ocr", "image/jpeg", b"\xff\xd8\xff\xe0" + bytes(64)),
        ("bad_ocr", "image/bmp", b"BM" + b"\xff" * 64),
    ],
    ids=["PNG", "JPEG", "BMP"],
)
def test_an_image_broken_inside_ends_as_a_failed_run_that_says_so(
    client: httpx.Client, workflow: str, kind: str, data: bytes
) -> None:
    """What looks right from outside is found out by the worker; the error names the input."""
    answer = client.post(
        f"/v1/workflows/{workflow}/runs?wait=60",
        content=data,
        headers={"Content-Type": kind},
        timeout=70,
    )
    run = answer.json()
    assert (answer.status_code, run["status"]) == (200, "failed"), run
    assert run["error"]["field"] == "inputs.image"
    assert run["error"]["code"] == "INVALID_ARGUMENT"
