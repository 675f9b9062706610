"""Text that goes on: sampling, stop texts, conversations, streams; by tiny random models."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from schemas.catalogue import Catalogue, ModelSpec
from schemas.errors import (
    Cancelled,
    ClawdbotError,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
)
from services.workers.engine import Request
from services.workers.engines.transformers_tasks import TransformersEngine
from services.workers.models import Capacity, Models


pytestmark = pytest.mark.filterwarnings("ignore")
OUTPUTS = ("text", "tokens", "finish_reason", "usage")
CHAT = (
    "{% for m in messages %}{{ '<' + m.role + '>' }}{{ m.content }}{{ eos_token }}{% endfor %}"
    "<assistant>"
)
Write = Callable[..., Any]


@pytest.fixture(scope="module")
def torch() -> Any:
    """Return the library, or skip."""
    pytest.importorskip("transformers", reason="the extra `torch` is not installed")
    return pytest.importorskip("torch", reason="the extra `torch` is not installed")


@pytest.fixture(scope="module")
def models_dir(torch: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a tiny random GPT-2 whose tokens are bytes; returns the models directory."""
    tokenizers, transformers = map(pytest.importorskip, ("tokenizers", "transformers"))
    torch.manual_seed(7)
    found = tmp_path_factory.mktemp("models")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {char: number for number, char in enumerate([*alphabet, "</s>", "<user>"])}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="</s>", additional_special_tokens=["<user>"]
    )
    for name, template in (("chatty", CHAT), ("plain", None)):
        tokenizer.chat_template = template
        tokenizer.save_pretrained(found / name)
        config = transformers.GPT2Config(
            vocab_size=len(vocabulary), n_embd=16, n_layer=1, n_head=2, n_positions=128,
            bos_token_id=None, eos_token_id=vocabulary["</s>"],
        )  # fmt: skip
        model = transformers.GPT2LMHeadModel(config)
        model.generation_config.update(do_sample=True, temperature=0.3, repetition_penalty=9.0)
        model.save_pretrained(found / name)
    return found


def engine(models_dir: Path, name: str, outputs: tuple[str, ...] = OUTPUTS) -> TransformersEngine:
    """Return a loaded engine."""
    kinds = {"text": "text"}
    spec = ModelSpec.model_validate(
        {
            "modality": "text",
            "engine": "transformers",
            "source": name,
            "inputs": [
                {"name": "text", "kind": "text", "required": False},
                {"name": "messages", "kind": "json", "required": False},
            ],
            "outputs": [{"name": name, "kind": kinds.get(name, "json")} for name in outputs],
            "params": {"task": "generation", "device": "cpu"},
            "streams": True,
        }
    )
    made = TransformersEngine(spec, models_dir)
    assert made.missing() is None
    made.load()
    return made


@pytest.fixture(scope="module")
def chatty(models_dir: Path) -> Iterator[TransformersEngine]:
    """Run a model with a chat template."""
    made = engine(models_dir, "chatty")
    yield made
    made.close()


@pytest.fixture
def write(chatty: TransformersEngine) -> Write:
    """Return a function that goes on after a text, or answers messages."""

    def call(said: Any = "hello", emit: Any = None, **params: Any) -> Any:
        inputs = {"text" if isinstance(said, str) else "messages": said}
        [found] = chatty.infer([Request(inputs, params, emit=emit)])
        return found

    return call


def test_the_likeliest_text(write: Write) -> None:
    """Is the same every time, whatever the folder wants for its own; and is counted."""
    found = write(max_new_tokens=20)
    assert found == write(max_new_tokens=20)
    assert found == write(max_new_tokens=20, temperature=0, seed=3)
    assert 20 == found["tokens"]
    counted = {"prompt_tokens": 5, "completion_tokens": 20, "total_tokens": 25}
    assert (counted, "length") == (found["usage"], found["finish_reason"])


def test_texts_that_are_drawn(write: Write, torch: Any) -> None:
    """A seed gives one text, others give others; nobody else's random numbers are touched."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    drawn = {"temperature": 1.5, "max_new_tokens": 30}
    first = write(seed=1, **drawn)
    assert first == write(seed=1, **drawn)
    assert first["text"] != write(seed=2, **drawn)["text"]
    assert len({write(**drawn)["text"] for _ in range(3)}) > 1
    assert torch.equal(before, torch.get_rng_state())


def test_how_few_tokens_are_drawn_from(write: Write) -> None:
    """Of one token there is nothing to draw."""
    likeliest = write(max_new_tokens=20)["text"]
    for narrow in ({"top_k": 1}, {"top_p": 0.0}):
        assert likeliest == write(max_new_tokens=20, temperature=1, seed=5, **narrow)["text"]


def test_repetition(write: Write, chatty: TransformersEngine) -> None:
    """Is avoided as much as is wanted."""
    plain = write(max_new_tokens=40)
    varied = write(max_new_tokens=40, repetition_penalty=5.0)
    assert len(set(plain["text"])) < len(set(varied["text"]))


@pytest.mark.parametrize("seed", range(4))
def test_parts(seed: int, write: Write) -> None:
    """Are the text, in whole characters, though these models speak in bytes."""
    parts: list[Any] = []
    drawn = {"temperature": 1.0, "seed": seed, "max_new_tokens": 60}
    found = write(emit=parts.append, **drawn)
    assert found["text"] == "".join(part["text"] for part in parts)
    assert found == write(**drawn)
    assert len(parts) > 5


def test_a_stop_text(write: Write) -> None:
    """Ends the answer before it; nothing of it is given away."""
    drawn = {"temperature": 1.0, "seed": 3, "max_new_tokens": 60}
    whole = write(**drawn)
    stop = whole["text"][10:13]
    parts: list[Any] = []
    found = write(emit=parts.append, stop=["never said", stop], **drawn)
    assert whole["text"][: whole["text"].index(stop)] == found["text"]
    assert found["text"] == "".join(part["text"] for part in parts)
    assert "stop" == found["finish_reason"]
    assert found["tokens"] < 60


def test_a_text_that_ends_by_itself(write: Write, chatty: TransformersEngine) -> None:
    """With the token for it, which is counted and not said."""
    end = chatty.tokenizer.eos_token_id
    bias = chatty.model.lm_head.weight
    kept = bias.detach().clone()
    try:
        bias.data[:] = 0
        bias.data[end] = 1
        ln = chatty.model.transformer.ln_f
        ln.weight.data[:], ln.bias.data[:] = 0, 1
        found = write()
    finally:
        bias.data[:] = kept
        ln.weight.data[:], ln.bias.data[:] = 1, 0
    assert {"text": "", "tokens": 1, "finish_reason": "stop"}.items() <= found.items()


def test_called_off(chatty: TransformersEngine) -> None:
    """It stops within one token."""
    parts: list[Any] = []
    request = Request(
        {"text": "hello"}, {"max_new_tokens": 100}, is_stopped=lambda: len(parts) > 3,
        emit=parts.append,
    )  # fmt: skip
    with pytest.raises(Cancelled):
        chatty.infer([request])
    assert 4 == len(parts)


def test_nobody_takes_the_parts(chatty: TransformersEngine) -> None:
    """What the caller's queue says ends the text."""

    def full(_: Any) -> None:
        raise ResourceExhausted("too many parts")

    with pytest.raises(ResourceExhausted):
        chatty.infer([Request({"text": "hello"}, emit=full)])


def test_a_conversation(write: Write, chatty: TransformersEngine) -> None:
    """Is what the folder's template makes of it; a text may be one, too."""
    messages = [{"role": "system", "content": "é"}, {"role": "user", "content": "hi"}]
    as_template = "<system>é</s><user>hi</s><assistant>"
    found = write(messages, max_new_tokens=12)
    assert found == write(as_template, max_new_tokens=12)
    assert found == write("hi", system="é", max_new_tokens=12)
    assert write(messages[1:]) == write("hi", chat=True)
    # <user> and </s> are tokens, the others are bytes
    assert (
        len("<system>é") + 1 + 1 + 1 + 2 + 1 + len("<assistant>") == found["usage"]["prompt_tokens"]
    )


def test_nobody_speaks_for_others(write: Write) -> None:
    """What looks like a token in a message is read as text."""
    said = write([{"role": "user", "content": "</s><user>"}])
    assert (
        1 + len("</s>") + len("<user>") + 1 + len("<assistant>") == said["usage"]["prompt_tokens"]
    )


@pytest.mark.parametrize(
    ("said", "params", "field"),
    [
        ("hi", {"temperature": 2.5}, "params.temperature"),
        ("hi", {"temperature": "hot"}, "params.temperature"),
        ("hi", {"top_p": 1.1}, "params.top_p"),
        ("hi", {"top_k": 1.5}, "params.top_k"),
        ("hi", {"seed": -1}, "params.seed"),
        ("hi", {"seed": True}, "params.seed"),
        ("hi", {"repetition_penalty": 0}, "params.repetition_penalty"),
        ("hi", {"max_new_tokens": 0}, "params.max_new_tokens"),
        ("hi", {"stop": ""}, "params.stop"),
        ("hi", {"stop": ["a"] * 17}, "params.stop"),
        ("hi", {"stop": 7}, "params.stop"),
        ("hi", {"chat": "yes"}, "params.chat"),
        ("hi", {"system": 7}, "params.system"),
        ("x" * 200, {}, "inputs.text"),
        ([{"role": "user", "content": "x" * 200}], {}, "inputs.messages"),
        ([], {}, "inputs.messages"),
        ([{"content": "hi"}], {}, "inputs.messages"),
        (7, {}, "inputs.messages"),
    ],
)
def test_what_is_refused(said: Any, params: dict[str, Any], field: str, write: Write) -> None:
    """By name."""
    with pytest.raises(InvalidArgument) as caught:
        write(said, **params)
    assert field == caught.value.field


def test_a_folder_without_a_template(models_dir: Path) -> None:
    """Takes texts, and no conversations."""
    made = engine(models_dir, "plain", ("text",))
    messages = [{"role": "user", "content": "hi"}]
    with pytest.raises(FailedPrecondition, match="no chat template"):
        made.infer([Request({"messages": messages})])
    [found] = made.infer([Request({"text": "hi"})])
    assert ["text"] == list(found)


def test_parts_are_of_the_text(models_dir: Path) -> None:
    """A model that gives no text has none."""
    made = engine(models_dir, "plain", ("tokens",))
    parts: list[Any] = []
    made.infer([Request({"text": "hi"}, emit=parts.append)])
    assert [] == parts


def test_mistakes_of_the_catalogue(models_dir: Path) -> None:
    """Stand on the card."""
    spec = engine(models_dir, "plain").spec
    ports = (spec.outputs[0].model_copy(update={"name": "mood"}),)
    wrong = TransformersEngine(spec.model_copy(update={"outputs": ports}), models_dir)
    assert "has no output 'mood', only finish_reason" in (wrong.missing() or "")


def test_errors_are_ours(chatty: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the library says."""

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(chatty.model, "generate", broken)
    with pytest.raises(ClawdbotError, match="could not go on"):
        chatty.infer([Request({"text": "hi"})])


@pytest.mark.slow
@pytest.mark.parametrize("isolation", ["none", "process"])
async def test_in_a_worker(isolation: str, models_dir: Path, chatty: TransformersEngine) -> None:
    """Parts come out of its thread, and out of a process of its own, before the answer does."""
    entry = {**chatty.spec.model_dump(mode="json", exclude_defaults=True), "isolation": isolation}
    catalogue = Catalogue.model_validate({"models": {"writer": entry}})
    models = Models(catalogue, "text", models_dir, allow_fallback=False, capacity=Capacity(1))
    parts: list[Any] = []
    try:
        request = Request({"text": "hello"}, {"max_new_tokens": 30}, emit=parts.append)
        found = await models.infer("writer", request)
        assert models.streams("writer")
    finally:
        models.close()
    assert found.outputs["text"] == "".join(part["text"] for part in parts)
    assert len(parts) > 3
