"""What is pushed to the model repository and refused, over HTTP, whoever the client is."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from schemas.repository import PART_BYTES_MAX
from tests.integration.conftest import Running
from tests.support import hostile_models as hostile
from tests.support import onnx_models as tiny


pytestmark = pytest.mark.nats
GOOD = tiny.identity("FP32").SerializeToString()
PORT = tiny.port("X", "FP32", [-1, 2])


@pytest.fixture
def drafts(running: Running) -> Iterator[Path]:
    """Where gateways look through what is pushed; nothing stays there."""
    folder = running.mesh.folder / "data" / "pushes"
    yield folder
    assert [] == (list(folder.iterdir()) if folder.exists() else [])


def part_of(http: httpx.Client, data: bytes) -> str:
    """Store a part."""
    answer = http.post("/v1/artefacts", content=data)
    assert 201 == answer.status_code, answer.text
    sha256: str = answer.json()["sha256"]
    return sha256


def file_of(http: httpx.Client, path: str, data: bytes) -> dict[str, Any]:
    """Store a file's part, and return what names it."""
    parts = [part_of(http, data)] if data else []
    digest = hashlib.sha256(data).hexdigest()
    return {"path": path, "size_bytes": len(data), "sha256": digest, "parts": parts}


def spec(**update: Any) -> dict[str, Any]:
    """Return the spec of a model from X to Y."""
    ports = {"inputs": [PORT], "outputs": [tiny.port("Y", "FP32", [-1, 2])]}
    return {"modality": "text", "engine": "onnx", "source": "m.onnx", **ports, **update}


def refused(
    http: httpx.Client, name: str, files: list[dict[str, Any]], **update: Any
) -> dict[str, Any]:
    """Push, and return the error."""
    body = {"spec": spec(**update), "files": files}
    answer = http.post(f"/v1/models/{name}/versions", json=body)
    assert 400 == answer.status_code, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert "/" + "tmp" not in answer.text  # where it lay is nobody's business
    assert 404 == http.get(f"/v1/models/{name}").status_code
    return error


@pytest.mark.parametrize("trick", hostile.CONTENTS)
def test_hostile_files_never_become_a_version(http: httpx.Client, drafts: Path, trick: str) -> None:
    """Each is read back and looked through before anybody can see it."""
    path, data, text = hostile.CONTENTS[trick]
    engine = "torch" if path.endswith(".pt2") else "onnx"
    error = refused(http, "hostile", [file_of(http, path, data)], source=path, engine=engine)
    assert "files" == error["field"]
    assert text in error["message"]


@pytest.mark.parametrize("kind", ["pickle", "torch", "numpy"])
def test_pickles_are_never_read(
    http: httpx.Client, drafts: Path, tmp_path: Path, kind: str
) -> None:
    """By their own ending they are no files of a model, by another they are what they are."""
    canary = tmp_path / "canary"
    make = {
        "pickle": hostile.pickled,
        "torch": hostile.torch_file,
        "numpy": hostile.numpy_file,
    }[kind]
    ending = {"pickle": "pkl", "torch": "pt", "numpy": "npy"}[kind]
    data = make(canary)
    error = refused(http, "pickles", [file_of(http, f"m.{ending}", data)])
    assert "convert them to safetensors" in error["message"]
    error = refused(http, "pickles", [file_of(http, "m.json", data)], source="m.json")
    assert "m.json" in error["message"]
    assert not canary.exists()


@pytest.mark.parametrize("path", hostile.PATHS)
def test_paths_that_lead_elsewhere(http: httpx.Client, drafts: Path, path: str) -> None:
    """Refused before anything is read or written."""
    error = refused(http, "paths", [file_of(http, path, GOOD)])
    assert "files" == error["field"]


@pytest.mark.parametrize(
    "name", ["..", "%2e%2e", "a%00b", "a%5Cb", "C:", "a%20b", ".a", "x" * 65, "a@2", "a%0Ab"]
)
def test_names_that_no_model_has(http: httpx.Client, name: str) -> None:
    """A name is one token, whichever way it is written."""
    target = httpx.URL(f"{http.base_url}/v1/models/x/versions").copy_with(
        raw_path=f"/v1/models/{name}/versions".encode()
    )
    answer = http.post(target, json={"spec": spec(), "files": []})
    assert answer.status_code in {400, 404}, answer.text


@pytest.mark.parametrize("name", ["../x", "..%2f..%2fetc", "/etc/passwd", "%2fetc"])
def test_names_that_are_paths_have_no_address(http: httpx.Client, name: str) -> None:
    """They do not even reach a route."""
    target = http.base_url.copy_with(raw_path=f"/v1/models/{name}/versions".encode())
    assert 404 == http.post(target, json={"spec": spec(), "files": []}).status_code


def test_names_of_the_catalogue_are_taken(http: httpx.Client) -> None:
    """Nobody can put a model in the place of one that everybody uses."""
    body = {"spec": spec(), "files": [file_of(http, "m.onnx", GOOD)]}
    answer = http.post("/v1/models/echo/versions", json=body)
    assert (409, "ALREADY_EXISTS") == (answer.status_code, answer.json()["error"]["code"])
    for path in ("/v1/models/echo/control", "/v2/repository/models/echo/unload"):
        assert 409 == http.post(path, json={"action": "unload"} if "v1" in path else {}).status_code
    assert 409 == http.delete("/v1/models/echo").status_code


def test_what_is_said_of_a_file_must_be_so(http: httpx.Client, drafts: Path) -> None:
    """Its size, its digest, its parts, its tensors."""
    good = file_of(http, "m.onnx", GOOD)
    for lie in ({"size_bytes": len(GOOD) - 1}, {"size_bytes": len(GOOD) + 1}, {"sha256": "0" * 64}):
        assert "its digest differs" in refused(http, "lies", [{**good, **lie}])["message"]
    twice = {**good, "parts": good["parts"] * 2}
    assert "its digest differs" in refused(http, "lies", [twice])["message"]
    absent = {**good, "parts": ["ab" * 32]}
    assert "is not stored; send it first" in refused(http, "lies", [absent])["message"]
    huge = {**good, "size_bytes": 3 * 1024**3}
    assert "at most" in refused(http, "lies", [huge])["message"]
    assert "there twice" in refused(http, "lies", [good, {**good, "path": "M.onnx"}])["message"]


@pytest.mark.parametrize(
    ("update", "field"),
    [
        ({"engine": "http", "source": None}, "spec.engine"),
        ({"engine": "../x"}, "spec.engine"),
        ({"fallback": "echo"}, "spec.fallback"),
        ({"source": "../m.onnx"}, "spec.source"),
        ({"source": "other.onnx"}, "spec.source"),
        ({"params": {"provider_options": {"X": {"path": "/etc"}}}}, "spec.params.provider_options"),
        ({"params": {"bytes_max": 10**12}}, "spec.params.bytes_max"),
        ({"inputs": [{**PORT, "tensor": "Q"}]}, "spec.inputs[0]"),
        ({"inputs": [{**PORT, "datatype": "INT64"}]}, "spec.inputs[0]"),
        ({"inputs": []}, "spec.inputs"),
        ({"sorcery": True}, "spec.sorcery"),
    ],
)
def test_specs_that_reach_too_far(
    http: httpx.Client, drafts: Path, update: dict[str, Any], field: str
) -> None:
    """A pushed model has its own files, and tensors that its file has."""
    good = file_of(http, "m.onnx", GOOD)
    assert field == refused(http, "specs", [good], **update)["field"]


def tokens(**vocabulary: Any) -> dict[str, Any]:
    """Return what a spec of a model has that reads tokens."""
    return {
        "signature": "sequence-classification/1",
        "vocabulary": {"path": "tokenizer.json", "tokens_max": 64, **vocabulary},
        "inputs": [tiny.port("input_ids", "INT64", [-1, -1])],
        "outputs": [tiny.port("logits", "FP32", [-1, 2])],
        "engine": "transformers",
        "source": "m.safetensors",
    }


def test_tokenizers_that_harm(http: httpx.Client, drafts: Path) -> None:
    """A pattern that takes for ever, and a vocabulary that is another file than the spec says."""
    step = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated"}
    model = {"type": "BPE", "vocab": {"a": 0}, "merges": []}
    weights = file_of(http, "m.safetensors", hostile.safetensors({}))
    data = orjson.dumps({"model": model, "pre_tokenizer": step})
    file = file_of(http, "tokenizer.json", data)
    error = refused(http, "tokens", [weights, file], **tokens(sha256=file["sha256"]))
    assert "files" == error["field"]
    assert "may take for ever" in error["message"]
    for change in ({"sha256": "0" * 64}, {"sha256": file["sha256"], "path": "absent.json"}):
        error = refused(http, "tokens", [weights, file], **tokens(**change))
        assert "spec.vocabulary" == error["field"]


def test_parts_are_small_and_whole(http: httpx.Client) -> None:
    """An empty part, one too large, and one that is none."""
    assert 400 == http.post("/v1/artefacts", content=b"").status_code
    large = http.post("/v1/artefacts", content=bytes(PART_BYTES_MAX + 1))
    assert (400, "body") == (large.status_code, large.json()["error"]["field"])
    assert 404 == http.get(f"/v1/artefacts/{'0' * 64}").status_code
    assert 400 == http.get("/v1/artefacts/not-a-digest").status_code


def test_orders_that_fit_nothing(http: httpx.Client) -> None:
    """Models and versions that are not there, orders that are none."""
    assert 404 == http.post("/v1/models/nobody/control", json={"action": "load"}).status_code
    assert 404 == http.delete("/v1/models/nobody").status_code
    assert 400 == http.post("/v1/models/nobody/control", json={"action": "explode"}).status_code
    assert 404 == http.post("/v2/repository/models/nobody/load").status_code
    for config, status in (("{}", 200), ('{"response_cache": {"enable": true}}', 409), ("no", 400)):
        parameters = {"parameters": {"config": config}}
        answer = http.post("/v2/repository/models/echo/load", json=parameters)
        assert status == answer.status_code, answer.text
        assert 400 <= http.post("/v2/repository/models/no/load", json=parameters).status_code
    assert 200 == http.post("/v2/repository/models/echo/load").status_code
