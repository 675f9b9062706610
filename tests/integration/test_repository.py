"""The model repository: from a folder to answers, over every way that clients have."""

import asyncio
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import nats
import numpy as np
import ormsgpack
import pytest
import tritonclient.http as triton
import yaml
from tritonclient.utils import InferenceServerException

from clawdbot import AsyncClient, Client, WorkflowBuilder
from events.packages import Hints
from events.subjects import infer
from schemas.errors import AlreadyExists, FailedPrecondition, NotFound
from schemas.repository import VersionPolicy
from schemas.values import Tensor, to_wire
from tests.integration.conftest import Running
from tests.support import onnx_models as tiny
from tests.support.wait import until_sync


pytestmark = pytest.mark.nats


ONES = Tensor(datatype="FP32", shape=(1, 2), data=np.ones(2, "<f4").tobytes())


@pytest.fixture
def client(running: Running) -> Iterator[Client]:
    """A client of the first gateway."""
    with Client(running.url()) as client:
        yield client


def times(factor: float) -> Any:
    """Return a model whose Y is X times a factor, FP32 [n, 2]."""
    weight = tiny.helper.make_tensor("factor", tiny.TensorProto.FLOAT, [1], [factor])
    node = tiny.helper.make_node("Mul", ["X", "factor"], ["Y"])
    ports = {"X": ("FP32", ("n", 2))}
    return tiny.model([node], ports, {"Y": ("FP32", ("n", 2))}, [weight])


def written(folder: Path, name: str, factor: float) -> Path:
    """Write a model's file, and return where."""
    tiny.save(times(factor), folder / f"{name}.onnx")
    return folder / f"{name}.onnx"


def asked(url: str, name: str, version: str = "") -> float:
    """Return by which factor a model multiplies, asked with Triton's own client."""
    client = triton.InferenceServerClient(url.removeprefix("http://"))
    try:
        tensor = triton.InferInput("X", [1, 2], "FP32")
        tensor.set_data_from_numpy(np.ones((1, 2), np.float32))
        found = client.infer(name, [tensor], model_version=version).as_numpy("Y")
        return float(found[0, 0])
    finally:
        client.close()


def answered(url: str, name: str, version: str = "") -> float | None:
    """Return what `asked` does; None while the model is not there."""
    try:
        return asked(url, name, version)
    except InferenceServerException:
        return None


def test_from_a_file_to_answers(client: Client, running: Running, tmp_path: Path) -> None:
    """A file is pushed, served by both gateways and usable in workflows, with no restart."""
    [pushed] = client.repository.push(written(tmp_path, "double", 2.0), hints=Hints())
    assert ("double", 1, 1, True) == (pushed.name, pushed.version, pushed.current, pushed.created)
    assert 2.0 == asked(running.url(), "double")
    until_sync(lambda: 2.0 == answered(running.url("gateway-1"), "double"))
    WorkflowBuilder().add_node("a", model="double").deploy("doubling", client=client)
    run = client.run("doubling", {"x": ONES})
    assert "completed" == run.status
    assert "double@1" == run.nodes[0].model


def test_versions_canaries_and_rollback(client: Client, running: Running, tmp_path: Path) -> None:
    """A new version is in use at once; a canary gets its part; a rollback is instant."""
    url, name = running.url("gateway-1"), "factor"
    for factor in (2.0, 3.0):
        client.repository.push(written(tmp_path, name, factor))
    until_sync(lambda: 3.0 == answered(url, name))
    assert 2.0 == asked(url, name, "1")
    view = client.repository.rollback(name)
    assert (1, 2) == (view.current, view.previous)
    assert 2.0 == asked(running.url(), name)  # where it was asked for, at once
    until_sync(lambda: 2.0 == asked(url, name))
    [pushed] = client.repository.push(written(tmp_path, name, 5.0), percent=50)
    assert (3, 1) == (pushed.version, pushed.current)
    until_sync(lambda: {2.0, 5.0} == {asked(url, name) for _ in range(12)})
    sticky = {"ce-correlationid": "one-client"}
    body = {"inputs": [{"name": "X", "shape": [1, 2], "datatype": "FP32", "data": [1, 1]}]}
    with httpx.Client(base_url=url, headers=sticky) as http:
        answers = [http.post(f"/v2/models/{name}/infer", json=body).json() for _ in range(8)]
    assert 1 == len({str(answer["outputs"]) for answer in answers})
    assert {"1", "3"} >= {answer["model_version"] for answer in answers}
    assert {} == client.repository.rollback(name).canaries
    until_sync(lambda: {2.0} == {asked(url, name) for _ in range(8)})
    assert 3 == client.repository.promote(name, 3).current
    client.repository.alias(name, "stable", 2)
    until_sync(lambda: 3.0 == answered(url, f"{name}@stable"))
    assert 3.0 == asked(url, name, "stable")


def test_a_run_keeps_the_versions_it_began_with(
    client: Client, running: Running, tmp_path: Path
) -> None:
    """The choice is in the log once, forks keep it, and a change of the fork chooses anew."""
    client.repository.push(written(tmp_path, "pinned", 2.0))
    WorkflowBuilder().add_node("a", model="pinned").deploy("pinned", client=client)
    first = client.run("pinned", {"x": ONES})
    client.repository.push(written(tmp_path, "pinned", 3.0))
    fork = client.fork(first.run_id, at=1)
    assert ["pinned@1", "pinned@1"] == [run.nodes[0].model for run in (first, fork)]
    assert "pinned@2" == client.run("pinned", {"x": ONES}).nodes[0].model
    changed = client.fork(first.run_id, changes={"a.model": "pinned@2"})
    assert "pinned@2" == changed.nodes[0].model
    started = client.events(first.run_id)[0].data
    assert "pinned@1" == started["plan"]["nodes"][0]["model"]


def test_triton_repository_extension(client: Client, running: Running, tmp_path: Path) -> None:
    """Index, unload, load, and a file sent along, with Triton's own client."""
    client.repository.push(written(tmp_path, "shelved", 2.0))
    server = triton.InferenceServerClient(running.url().removeprefix("http://"))
    try:
        server.load_model("shelved")
        assert {"name": "shelved", "version": "1", "state": "READY", "reason": ""} in (
            server.get_model_repository_index()
        )
        server.unload_model("shelved")
        until_sync(lambda: not server.is_model_ready("shelved"))
        entry = next(e for e in server.get_model_repository_index() if e["name"] == "shelved")
        assert ("UNAVAILABLE", "unloaded") == (entry["state"], entry["reason"])
        server.load_model("shelved")
        assert server.is_model_ready("shelved")
        data = times(7.0).SerializeToString()
        server.load_model("sent", config="{}", files={"file:1/model.onnx": data})
        assert 7.0 == asked(running.url(), "sent")
        assert "echo" in {entry["name"] for entry in server.get_model_repository_index()}
    finally:
        server.close()


def test_a_configuration_alone_is_another_version(
    client: Client, running: Running, tmp_path: Path
) -> None:
    """Of the same files; what the files decide is not changed, and a rollback brings it back."""
    client.repository.push(written(tmp_path, "tuned", 2.0))
    server = triton.InferenceServerClient(running.url().removeprefix("http://"))
    try:
        config = server.get_model_config("tuned")
        assert 0 == config["max_batch_size"]
        server.load_model("tuned", config=json.dumps(config))
        assert 1 == client.repository.get("tuned").current
        server.load_model("tuned", config=json.dumps({**config, "max_batch_size": 8}))
        assert (2, 2.0) == (client.repository.get("tuned").current, asked(running.url(), "tuned"))
        changed = server.get_model_config("tuned")
        assert (8, [2]) == (changed["max_batch_size"], changed["input"][0]["dims"])
        for wrong in ('{"backend": "python"}', '{"max_batch_size": -1}', '{"version_policy": {}}'):
            with pytest.raises(InferenceServerException, match="400"):
                server.load_model("tuned", config=wrong)
        server.load_model("tuned", config=json.dumps({"version_policy": {"all": {}}}))
        view = client.repository.rollback("tuned")
        assert (1, "all") == (view.current, view.policy.keep)
        until_sync(lambda: 0 == server.get_model_config("tuned")["max_batch_size"])
        with pytest.raises(InferenceServerException, match="404"):
            server.load_model("nobody", config="{}")
    finally:
        server.close()


def test_what_is_needed_is_not_removed(client: Client, running: Running, tmp_path: Path) -> None:
    """Aliases, canaries, workflows; by force everything goes, and its numbers with it."""
    name = "needed"
    for factor in (2.0, 3.0, 4.0):
        client.repository.push(written(tmp_path, name, factor))
    client.repository.alias(name, "stable", 2)
    WorkflowBuilder().add_node("a", model=f"{name}@1").deploy("needs-one", client=client)
    for number, why in ((1, "workflow 'needs-one'"), (2, "alias 'stable'"), (3, "in use")):
        with pytest.raises(FailedPrecondition, match=why):
            client.repository.remove(f"{name}@{number}")
    client.repository.unalias(name, "stable")
    client.repository.remove(f"{name}@2")
    assert [1, 3] == [item.version for item in client.repository.get(name).versions]
    with pytest.raises(FailedPrecondition, match="workflow 'needs-one'"):
        client.repository.remove(name)
    assert "completed" == client.run("needs-one", {"x": ONES}).status
    client.repository.remove(name, force=True)
    with pytest.raises(NotFound):
        client.repository.get(name)
    assert "rejected" == client.run("needs-one", {"x": ONES}).status
    [again] = client.repository.push(written(tmp_path, name, 2.0))
    assert 4 == again.version


def test_another_signature_is_another_model(client: Client, tmp_path: Path) -> None:
    """Unless it is forced: what was deployed would bind to inputs that are not there."""
    client.repository.push(written(tmp_path, "shape", 2.0))
    tiny.save(tiny.identity("INT64"), tmp_path / "shape.onnx")
    with pytest.raises(FailedPrecondition, match="other inputs or outputs"):
        client.repository.push(tmp_path / "shape.onnx")
    [forced] = client.repository.push(tmp_path / "shape.onnx", force=True)
    assert 2 == forced.version


async def test_the_same_with_asyncio(running: Running, tmp_path: Path) -> None:
    """Every operation once; what comes back is what went in."""
    source = tmp_path / "folder"
    tiny.save(times(2.0), source / "nested" / "model.onnx")
    document = {
        "modality": "text",
        "engine": "onnx",
        "source": "nested/model.onnx",
        "inputs": [tiny.port("X", "FP32", [-1, 2])],
        "outputs": [tiny.port("Y", "FP32", [-1, 2])],
        "description": "Doubles.",
    }
    (source / "model.yaml").write_text(yaml.safe_dump(document))
    (source / "words.txt").write_bytes(b"")
    async with AsyncClient(running.url()) as client:
        store = client.repository
        [pushed] = await store.push(source, "whole")
        [again] = await store.push(source, "whole")
        assert (pushed.version, False) == (again.version, again.created)
        (source / "words.txt").write_text("another")
        [canary] = await store.push(source, "whole", percent=25)
        assert {"2": 25} == (await store.get("whole")).canaries
        assert {} == (await store.rollback("whole")).canaries
        assert 2 == (await store.promote("whole", canary.version)).current
        assert 1 == (await store.rollback("whole")).current
        assert {"good": 1} == (await store.alias("whole", "good", 1)).aliases
        pulled = await store.pull("whole@good", tmp_path / "pulled")
        assert (source / "nested/model.onnx").read_bytes() == (
            pulled / "nested/model.onnx"
        ).read_bytes()
        assert b"" == (pulled / "words.txt").read_bytes()
        assert document == yaml.safe_load((pulled / "model.yaml").read_text())
        with pytest.raises(AlreadyExists, match="is there already"):
            await store.pull("whole", tmp_path / "pulled")
        with pytest.raises(NotFound, match="'whole' has 1, 2, good"):
            await store.pull("whole@7", tmp_path / "other")
        [same] = await store.push(pulled, "whole")
        assert 1 == same.version
        assert {} == (await store.unalias("whole", "good")).aliases
        kept = await store.policy("whole", VersionPolicy(keep="all"))
        assert [True, True] == [version.offered for version in kept.versions]
        assert not (await store.unload("whole")).loaded
        assert (await store.load("whole")).loaded
        assert {} == (await store.canary("whole", 2, 0)).canaries
        assert "whole" in [view.name for view in await store.list()]
        await store.remove("whole")


def test_a_model_that_no_worker_can_run_says_why(client: Client, running: Running) -> None:
    """Nobody has the engine: it is not taken. Its weights are not among the files: load says so."""
    spec = {"modality": "text", "engine": "sorcery", "inputs": [], "outputs": []}
    with httpx.Client(base_url=running.url(), timeout=30) as http:
        answer = http.post("/v1/models/magic/versions", json={"spec": spec})
        assert (400, "spec.engine") == (answer.status_code, answer.json()["error"]["field"])
        spec |= {"engine": "transformers_classifier"}
        assert 201 == http.post("/v1/models/magic/versions", json={"spec": spec}).status_code
        answer = http.post("/v2/repository/models/magic/load")
        assert 503 == answer.status_code
        assert "'magic' cannot be loaded: " in answer.json()["error"]
        [version] = client.repository.get("magic").versions
        assert not version.offers[0].available
    client.repository.remove("magic")


async def test_an_inference_over_nats(running: Running, client: Client, tmp_path: Path) -> None:
    """The version in use, or one by its name, without any gateway in between."""
    client.repository.push(written(tmp_path, "direct", 2.0))
    body = ormsgpack.packb({"inputs": {"x": to_wire(ONES)}})
    headers = {"Content-Type": "application/msgpack", "Accept": "application/msgpack"}
    nc = await nats.connect(running.server.url)
    try:
        for name in ("direct", "direct@1"):
            subject = infer("default", "text", name)
            answer = await nc.request(subject, body, timeout=10, headers=headers)
            found = ormsgpack.unpackb(answer.data)
            assert "direct@1" == found["model"], found
    finally:
        await nc.close()


def test_canaries_of_runs(client: Client, tmp_path: Path) -> None:
    """Each run has one version for all of its nodes; over runs, both get their part."""
    client.repository.push(written(tmp_path, "tried", 2.0))
    builder = WorkflowBuilder().add_node("a", model="tried").add_node("b", model="tried")
    builder.deploy("tried", client=client)
    client.repository.push(written(tmp_path, "tried", 3.0), percent=50)
    ran = []
    for _ in range(12):
        run = client.run("tried", {"x": ONES})
        ran.append({node.model for node in run.nodes})
    assert all(len(models) == 1 for models in ran)
    assert {"tried@1", "tried@2"} == {model for models in ran for model in models}


def test_the_next_model_warms_while_a_node_runs(
    client: Client, running: Running, tmp_path: Path
) -> None:
    """Also at another service: its workers are told when the node before begins."""
    hints = Hints(modality="vision")
    client.repository.push(written(tmp_path, "later", 2.0), hints=hints)
    until_sync(
        lambda: any(offer.available for offer in client.repository.get("later").versions[0].offers),
        timeout_s=30,
    )
    builder = WorkflowBuilder().add_node("slow", model="repeat", delay_ms=60_000, timeout_s=300)
    builder.add_node("next", model="later", inputs={"x": "input.x"}).connect("slow", "next")
    builder.deploy("warms", client=client)
    run = client.run("warms", {"text": "some words", "x": ONES}, wait_s=0)
    log = running.mesh.services["vision-0"].log

    def loads() -> list[bool]:
        lines = [line for line in log.read_text().splitlines() if '"model_loaded"' in line]
        return [item["ahead"] for item in map(json.loads, lines) if item["model"] == "later@1"]

    until_sync(loads, timeout_s=30)
    assert [True] == loads()
    assert "running" == client.get(run.run_id).status
    client.cancel(run.run_id)


def test_a_text_goes_in_where_tokens_are_wanted(
    client: Client, running: Running, tmp_path: Path
) -> None:
    """Over HTTP, with Triton's client and plainly, and over NATS: the worker makes the tokens."""
    folder = tmp_path / "summing"
    ids, shape = {"h": 5, "i": 7, "!": 11}, ("n", "t")
    nodes = [
        tiny.helper.make_node("Mul", ["input_ids", "attention_mask"], ["seen"]),
        tiny.helper.make_node("Cast", ["seen"], ["real"], to=tiny.TensorProto.FLOAT),
        tiny.helper.make_node("ReduceSum", ["real", "axes"], ["logits"], keepdims=1),
    ]
    axes = tiny.helper.make_tensor("axes", tiny.TensorProto.INT64, [1], [1])
    ports = dict.fromkeys(("input_ids", "attention_mask"), ("INT64", shape))
    proto = tiny.model(nodes, ports, {"logits": ("FP32", ("n", 1))}, [axes])
    tiny.save(proto, folder / "model.onnx")
    known = {"type": "BPE", "vocab": ids, "merges": []}
    (folder / "tokenizer.json").write_text(json.dumps({"model": known}))
    digest = hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
    told = {"path": "tokenizer.json", "sha256": digest, "tokens_max": 16}
    entry = tiny.entry(
        "model.onnx",
        [tiny.port(name, "INT64", [-1, -1]) for name in ports],
        [tiny.port("logits", "FP32", [-1, 1])],
        signature="sequence-classification/1",
        vocabulary=told,
        max_batch_size=8,
    )
    (folder / "model.yaml").write_text(yaml.safe_dump(entry))
    client.repository.push(folder)
    server = triton.InferenceServerClient(running.url().removeprefix("http://"))
    try:
        text = triton.InferInput("input_ids", [1], "BYTES")
        text.set_data_from_numpy(np.array([b"hi!"], object))
        assert 23.0 == server.infer("summing", [text]).as_numpy("logits")[0, 0]
    finally:
        server.close()
    with httpx.Client(base_url=running.url()) as http:
        plain = http.post("/v2/models/summing/generate", json={"text_input": "hi"})
        assert 12.0 == plain.json()["logits"], plain.text

    async def over_nats() -> Any:
        nc = await nats.connect(running.server.url)
        try:
            body = json.dumps({"inputs": {"input_ids": "hihi"}}).encode()
            answer = await nc.request(infer("default", "text", "summing"), body, timeout=20)
            return json.loads(answer.data)
        finally:
            await nc.close()

    found = asyncio.run(over_nats())
    assert "summing@1" == found["model"], found
    assert "FP32" in str(found["outputs"])


def test_what_a_worker_counted_stays_when_it_ends(
    client: Client, running: Running, tmp_path: Path
) -> None:
    """It tells all gateways when it is stopped; they had never asked it."""
    client.repository.push(written(tmp_path, "tallied", 2.0), hints=Hints(modality="vision"))
    extra = running.mesh.add("vision-extra", "services.workers", modality="vision")
    extra.start()
    extra.wait_ready()
    subject = infer("default", "vision", "tallied", extra.fact("ready", "worker"))
    body = ormsgpack.packb({"inputs": {"x": to_wire(ONES)}})
    headers = {"Content-Type": "application/msgpack"}

    async def ask() -> str:
        nc = await nats.connect(running.server.url)
        try:
            answer = await nc.request(subject, body, timeout=20, headers=headers)
            return answer.data.decode()
        finally:
            await nc.close()

    assert "tallied@1" in asyncio.run(ask())
    running.mesh.stop_one("vision-extra")

    def counted(gateway: str) -> list[int]:
        url = f"{running.url(gateway)}/v2/models/tallied/stats"
        [found] = httpx.get(url).json()["model_stats"]
        return [found["inference_count"], found["inference_stats"]["success"]["count"]]

    for gateway in ("gateway-0", "gateway-1"):
        until_sync(lambda: [1, 1] == counted(gateway), timeout_s=30)  # noqa: B023 - called at once
