"""Hugging Face folders of common kinds, tiny and random, made on the spot; and folders of code."""

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.catalogue import ModelSpec
from schemas.errors import Cancelled, InvalidArgument, ModelUnavailable
from services.workers.batches import Crew, Line
from services.workers.engine import Request
from services.workers.engines import torch_models, transformers_embedding
from services.workers.engines.transformers_tasks import TransformersEngine


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "bye", "you"]


@pytest.fixture
def transformers() -> Any:
    """Return the library, or skip."""
    pytest.importorskip("torch", reason="the extra `torch` is not installed")
    return pytest.importorskip("transformers", reason="the extra `torch` is not installed")


def spec(task: str | None, **params: Any) -> ModelSpec:
    """Return a catalogue entry."""
    outputs = [{"name": "embedding", "kind": "tensor", "datatype": "FP32", "shape": [-1, 16]}]
    if task == "generation":
        outputs = [{"name": "text", "kind": "text"}, {"name": "tokens", "kind": "json"}]
    return ModelSpec.model_validate(
        {
            "modality": "text",
            "engine": "transformers",
            "source": "folder",
            "inputs": [{"name": "text", "kind": "text"}],
            "outputs": outputs,
            "params": params if task is None else {"task": task, **params},
        }
    )


def tokenizer(transformers: Any, folder: Path) -> None:
    """Save a tokenizer of a few words."""
    (folder / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)


@pytest.fixture
def embedder(transformers: Any, tmp_path: Path) -> Path:
    """Save a tiny BERT; returns the models directory."""
    folder = tmp_path / "folder"
    folder.mkdir()
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=12,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)
    tokenizer(transformers, folder)
    return tmp_path


@pytest.fixture
def writer(transformers: Any, tmp_path: Path) -> Path:
    """Save a tiny GPT-2; returns the models directory."""
    folder = tmp_path / "folder"
    folder.mkdir()
    config = transformers.GPT2Config(
        vocab_size=len(WORDS), n_embd=16, n_layer=1, n_head=2, n_positions=12,
        bos_token_id=2, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer(transformers, folder)
    return tmp_path


def engine(folder: Path, task: str, **params: Any) -> TransformersEngine:
    """Return a loaded engine."""
    made = TransformersEngine(spec(task, **params), folder)
    assert made.missing() is None
    made.load()
    return made


@pytest.mark.filterwarnings("ignore")
def test_embeddings(embedder: Path) -> None:
    """Unit vectors; company in the batch, and so padding, changes none of them."""
    made = engine(embedder, "embedding")
    [both] = made.infer([Request({"text": ["hello", "bye you hello " * 10]})])
    [alone] = made.infer([Request({"text": "hello"})])
    rows = np.frombuffer(both["embedding"].data, "<f4").reshape(both["embedding"].shape)
    one = np.frombuffer(alone["embedding"].data, "<f4")
    np.testing.assert_allclose([1, 1], np.linalg.norm(rows, axis=1), atol=1e-5)
    np.testing.assert_allclose(rows[0], one, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_texts_of_several_requests(embedder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Share passes, sorted by length; each gets what it would get alone, in its order."""
    made = engine(embedder, "embedding")
    words = [" ".join(WORDS[5 + (number % 3)] for number in range(size)) for size in range(1, 9)]
    requests = [Request({"text": words[::-1]}), Request({"text": "you"}), Request({"text": words})]
    assert ["embedding"] * 3 == [made.batch_key(request) for request in requests]
    assert [8, 1, 8] == [made.rows(request) for request in requests]
    alone = [made.infer([request])[0]["embedding"] for request in requests]
    monkeypatch.setattr(transformers_embedding, "CPU_PASS_TOKENS_MAX", 20)
    seen: list[Any] = []
    forward = made.model.forward

    def counted(**given: Any) -> Any:
        seen.append(given)
        return forward(**given)

    monkeypatch.setattr(made.model, "forward", counted)
    for one, together in zip(alone, made.infer(requests), strict=True):
        found = together["embedding"]
        assert one.shape == found.shape
        rows = [np.frombuffer(tensor.data, "<f4") for tensor in (one, found)]
        np.testing.assert_allclose(rows[0], rows[1], atol=1e-5)
    sizes = [given["input_ids"].shape for given in seen]
    assert sorted(sizes, key=lambda shape: shape[1]) == sizes
    assert all(rows * tokens <= 20 or rows == 1 for rows, tokens in sizes)


@pytest.mark.filterwarnings("ignore")
def test_what_is_wrong_with_one(embedder: Path) -> None:
    """Fails nobody else: it is not computed with others."""
    made = engine(embedder, "embedding")
    assert made.batch_key(Request({"text": 7})) is None
    assert made.embedder is not None
    made.embedder._tokenizer = lambda texts, **_: {"input_ids": [[] for _ in texts]}
    with pytest.raises(InvalidArgument, match="an empty text has no vector"):
        made.infer([Request({"text": ""})])


async def test_a_line_of_embeddings(embedder: Path) -> None:
    """Those that wait while another is computed are computed together, up to the entry's limit."""
    made = engine(embedder, "embedding", max_batch_size=4)
    calls: list[int] = []
    infer = made.infer

    def counted(batch: Any) -> Any:
        calls.append(sum(map(made.rows, batch)))
        return infer(batch)

    made.infer = counted  # type: ignore[method-assign]
    with ThreadPoolExecutor(1) as pool:
        line = Line("m", made, Crew(pool.submit, 1), 64)
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(line.infer(Request({"text": "hello"}))) for _ in range(9)]
    found = [task.result() for task in asked]
    assert 9 == sum(calls)
    assert max(calls) <= 4
    vectors = [np.frombuffer(item.outputs["embedding"].data, "<f4") for item in found]
    for vector in vectors:
        np.testing.assert_allclose(vectors[0], vector, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_datatypes(dtype: str, embedder: Path) -> None:
    """Are the catalogue's to choose; vectors are float32 in any case, and about the same."""
    [one] = engine(embedder, "embedding").infer([Request({"text": "hello you"})])
    made = engine(embedder, "embedding", dtype=dtype)
    assert f"torch.{dtype}" == str(made.model.dtype)
    [other] = made.infer([Request({"text": "hello you"})])
    rows = [np.frombuffer(found["embedding"].data, "<f4") for found in (one, other)]
    np.testing.assert_allclose(rows[0], rows[1], atol=0.05)


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"dtype": "int4"}, "'dtype' is one of auto, float32, float16, bfloat16"),
        ({"max_batch_size": 0}, "'max_batch_size' in params is 1 to 1024 texts"),
        ({"max_batch_size": "32"}, "'max_batch_size' in params is 1 to 1024 texts"),
    ],
)
def test_mistakes_of_the_catalogue(params: dict[str, Any], says: str, tmp_path: Path) -> None:
    """Stand on the card."""
    pytest.importorskip("torch", reason="the extra `torch` is not installed")
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_text("{}")
    assert says == TransformersEngine(spec("embedding", **params), tmp_path).missing()


@pytest.mark.filterwarnings("ignore")
def test_generation(writer: Path) -> None:
    """The same text every time, of as many tokens as were asked for and there is room for."""
    made = engine(writer, "generation")
    first, again, longest = made.infer(
        [
            Request({"text": "hello"}, {"max_new_tokens": 3}),
            Request({"text": "hello"}, {"max_new_tokens": 3}),
            Request({"text": "hello"}, {"max_new_tokens": 100}),
        ]
    )
    assert 3 == first["tokens"]
    assert first == again
    assert 12 - 3 == longest["tokens"]  # [CLS] hello [SEP] are three of twelve positions


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("request_", "kind", "says"),
    [
        (Request({"text": "hello " * 20}), InvalidArgument, "has 22 tokens; the model reads"),
        (Request({"text": 7}), InvalidArgument, "must be text"),
        (Request({"text": "hello"}, {"max_new_tokens": 0}), InvalidArgument, "max_new_tokens"),
        (Request({"text": "hello"}, is_stopped=lambda: True), Cancelled, "nobody waits"),
    ],
)
def test_generation_that_does_not_begin(
    request_: Request, kind: type[Exception], says: str, writer: Path
) -> None:
    """Bad inputs by name; what nobody waits for any more stops at the next token."""
    made = engine(writer, "generation")
    with pytest.raises(kind, match=says):
        made.infer([request_])


def test_a_task_is_needed(tmp_path: Path) -> None:
    """The folder does not say what it is for."""
    reason = TransformersEngine(spec(None), tmp_path).missing()
    assert "one of embedding, generation" in (reason or "")


def write(folder: Path, name: str, document: Any) -> None:
    """Write a JSON file."""
    (folder / name).write_text(json.dumps(document), encoding="utf-8")


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (lambda f: write(f, "config.json", {"auto_map": {"AutoModel": "evil.Model"}}), "auto_map"),
        (lambda f: write(f, "config.json", {"sub": [{"auto_map": {}}]}), "auto_map"),
        (lambda f: write(f, "tokenizer_config.json", {"auto_map": {}}), "auto_map"),
        (lambda f: write(f, "config.json", {"custom_pipelines": {}}), "custom_pipelines"),
        (lambda f: write(f, "config.json", {"_attn_implementation": "a/b"}), "kernels elsewhere"),
        (lambda f: (f / "config.json").write_text("{"), "is no JSON"),
        (lambda f: (f / "model.safetensors").symlink_to("/etc/hostname"), "link out of"),
    ],
)
def test_a_folder_that_asks_for_code(act: Callable[[Path], Any], says: str, tmp_path: Path) -> None:
    """Is not handed to the library at all, which would have to be trusted not to run it."""
    folder = tmp_path / "folder"
    folder.mkdir()
    act(folder)
    with pytest.raises(ModelUnavailable, match=says):
        torch_models.check(folder)
    with pytest.raises(ModelUnavailable, match=says):
        torch_models.pretrained(None, folder)


@pytest.mark.filterwarnings("ignore")
def test_code_in_a_folder_is_never_run(embedder: Path) -> None:
    """A config that names it makes the folder useless, and leaves no trace."""
    folder = embedder / "folder"
    config = json.loads((folder / "config.json").read_text())
    write(folder, "config.json", {**config, "auto_map": {"AutoModel": "evil.Model"}})
    (folder / "evil.py").write_text(f"open({str(embedder / 'canary')!r}, 'w')")
    made = TransformersEngine(spec("embedding"), embedder)
    with pytest.raises(ModelUnavailable, match="names code"):
        made.load()
    assert not (embedder / "canary").exists()
