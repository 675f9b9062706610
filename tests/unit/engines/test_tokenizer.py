"""Texts become the tokens of a model whose tokenizer is a tokenizer.json."""

import hashlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schemas.catalogue import ModelSpec
from schemas.edges import adaptation_of
from schemas.errors import InvalidArgument, ModelUnavailable
from schemas.signatures import TOKENIZER_ADAPTER
from services.workers.adapters import adapted
from services.workers.engines import fields
from services.workers.engines import tokenizer as ours


np = pytest.importorskip("numpy", reason="the extra `models` is not installed")
library = pytest.importorskip("tokenizers", reason="the extra `tokenizers` is not installed")

TEXTS = [
    "Hello world, this is a test of tokens.",
    "A tokenizer reads what a file says; nothing of it is run.",
    "Numbers 1234 and signs !?% and caf\u00e9s, \u4f60\u597d.",
] * 5


def _trained(model: Any, trainer: Any, pre: Any, special: list[str]) -> Any:
    found = library.Tokenizer(model)
    found.pre_tokenizer = pre
    found.train_from_iterator(TEXTS, trainer)
    first, last = special[:2]
    found.post_processor = library.processors.TemplateProcessing(
        single=f"{first} $A {last}",
        special_tokens=[(token, found.token_to_id(token)) for token in (first, last)],
    )
    return found


def byte_pairs() -> Any:
    """Return a tokenizer as those of GPT-2 and RoBERTa are."""
    special = ["<s>", "</s>", "<unk>"]
    trainer = library.trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, show_progress=False,
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    pre = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return _trained(library.models.BPE(), trainer, pre, special)


def unigram() -> Any:
    """Return a tokenizer as those of T5 and XLM-R are."""
    special = ["<s>", "</s>", "<unk>"]
    trainer = library.trainers.UnigramTrainer(
        vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    found = _trained(library.models.Unigram(), trainer, library.pre_tokenizers.Metaspace(), special)
    found.normalizer = library.normalizers.NFKC()
    return found


def word_pieces() -> Any:
    """Return a tokenizer as BERT's is."""
    special = ["[CLS]", "[SEP]", "[UNK]"]
    trainer = library.trainers.WordPieceTrainer(
        vocab_size=200, special_tokens=special, show_progress=False
    )
    pre = library.pre_tokenizers.BertPreTokenizer()
    return _trained(library.models.WordPiece(unk_token="[UNK]"), trainer, pre, special)


KINDS: list[Callable[[], Any]] = [byte_pairs, unigram, word_pieces]


def spec(folder: Path, made: Any, tokens_max: int = 64, **more: Any) -> ModelSpec:
    """Write a tokenizer, and return the entry of a model that reads its tokens."""
    data = made if isinstance(made, bytes) else made.to_str().encode()
    (folder / "tokenizer.json").write_bytes(data)
    tokens = {"kind": "tensor", "datatype": "INT64", "shape": [-1, -1]}
    names = ("input_ids", "attention_mask", "token_type_ids")
    vocabulary = {
        "path": "tokenizer.json",
        "sha256": hashlib.sha256(data).hexdigest(),
        "tokens_max": tokens_max,
    }
    document = {
        "modality": "text",
        "engine": "onnx",
        "source": "m.onnx",
        "signature": "sequence-classification/1",
        "vocabulary": {**vocabulary, **more},
        "inputs": [{"name": name, **tokens} for name in names],
        "outputs": [{"name": "logits", "kind": "tensor", "datatype": "FP32", "shape": [-1, 2]}],
    }
    return ModelSpec.model_validate(document)


def read(folder: Path, wanted: ModelSpec, text: str) -> list[list[int]]:
    """Return ids, mask and types of a text."""
    how = {port.name: adaptation_of(port) for port in wanted.inputs}
    known = {name: item for name, item in how.items() if item is not None}
    assert {TOKENIZER_ADAPTER} == {item.adapter for item in known.values()}
    found = adapted(dict.fromkeys(known, text), known, folder)
    return [np.frombuffer(found[port.name].data, "<i8").tolist() for port in wanted.inputs]


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_those_of_the_library(kind: Callable[[], Any], tmp_path: Path) -> None:
    """Over texts of every sort; one row, with what is put around it."""
    theirs = kind()
    wanted = spec(tmp_path, theirs, tokens_max=500)
    chance = random.Random(0)
    letters = "abcde ABC \u00e9\u00df\u0130\t\n.,!?'12\u00a0\u4f60\u20ac\U0001f600"
    texts = [*TEXTS, *("".join(chance.choices(letters, k=30)) for _ in range(100))]
    for text in texts:
        expected = theirs.encode(text)
        found = read(tmp_path, wanted, text)
        assert [expected.ids, expected.attention_mask, expected.type_ids] == found, repr(text)


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_cannot_say_special_tokens(kind: Callable[[], Any], tmp_path: Path) -> None:
    """What looks like one is letters; the real ones are first and last."""
    theirs = kind()
    special = {theirs.token_to_id(token) for token in ("<s>", "</s>", "[CLS]", "[SEP]")} - {None}
    [ids, _, _] = read(tmp_path, spec(tmp_path, theirs), "a <s> b </s> c [CLS] d [SEP]")
    assert special == {ids[0], ids[-1]}
    assert not special & set(ids[1:-1])


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_too_long_is_cut(kind: Callable[[], Any], tmp_path: Path) -> None:
    """To what the model has positions for, with its end; whatever the file says of padding."""
    theirs = kind()
    theirs.enable_padding(length=100)
    [ids, mask, _] = read(tmp_path, spec(tmp_path, theirs, tokens_max=6), "hello world " * 50)
    assert (6, [1] * 6) == (len(ids), mask)
    [ids, mask, _] = read(tmp_path, spec(tmp_path, theirs, tokens_max=90), "hello")
    assert len(ids) == sum(mask) < 90


def test_a_text_without_tokens(tmp_path: Path) -> None:
    """Is the input's fault, by its name; so is one that is too long to be read."""
    theirs = byte_pairs()
    theirs.post_processor = library.processors.ByteLevel()
    with pytest.raises(InvalidArgument, match="no tokens") as caught:
        read(tmp_path, spec(tmp_path, theirs), "")
    assert "inputs.input_ids" == caught.value.field
    with pytest.raises(InvalidArgument, match="at most 16384"):
        read(tmp_path, spec(tmp_path, theirs), "a" * 20_000)


def test_a_file_that_is_another_or_harms(tmp_path: Path) -> None:
    """Is not read: neither one with another digest, nor one that is not taken, nor none."""
    theirs = byte_pairs()
    with pytest.raises(ModelUnavailable, match="not the one that the catalogue names"):
        read(tmp_path, spec(tmp_path, theirs, sha256="0" * 64), "hi")
    theirs.pre_tokenizer = library.pre_tokenizers.Split(library.Regex("(a+)+$"), "isolated")
    with pytest.raises(ModelUnavailable, match="may take for ever"):
        read(tmp_path, spec(tmp_path, theirs), "hi")
    with pytest.raises(ModelUnavailable, match="cannot be loaded"):
        read(tmp_path, spec(tmp_path, b'{"model": {"type": "BPE"}}'), "hi")


def test_the_library_may_be_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the model is not available here, and says what to install."""
    monkeypatch.setattr(
        fields,
        "missing_package",
        lambda *names: "not installed: tokenizers" if "tokenizers" in names else None,
    )
    ours.load.cache_clear()
    with pytest.raises(ModelUnavailable, match=r"clawdbot\[tokenizers\]"):
        read(tmp_path, spec(tmp_path, byte_pairs()), "hi")


def test_a_panic_of_the_library_is_an_error(tmp_path: Path) -> None:
    """Which is no `Exception`, and would end a worker."""

    class PanicException(BaseException):
        """As the library's."""

    class Panics:
        """A tokenizer that does."""

        def encode(self, text: str) -> Any:
            raise KeyboardInterrupt if text == "stop" else PanicException

    with pytest.raises(InvalidArgument, match="cannot be made into tokens"):
        ours.Tokenizer(Panics()).encode("hi", "inputs.x")
    with pytest.raises(KeyboardInterrupt):
        ours.Tokenizer(Panics()).encode("stop", "inputs.x")
