"""The engines on torch, with tiny models made up on the spot."""

import json
from pathlib import Path
from typing import Any

import pytest

from schemas import catalogue, wav
from schemas.errors import ModelUnavailable
from schemas.values import Binary
from services.workers.engine import Engine, Request
from services.workers.engines import engine_class, torch_models


def engine(name: str, folder: Path) -> Engine:
    """Return the engine of one model, its weights below `folder`."""
    spec = catalogue.load().models[name]
    engine = engine_class(spec.engine)(spec, folder)
    assert isinstance(engine, Engine)
    return engine


@pytest.mark.parametrize("name", ["whisper-large", "bert-base", "distilbert-base", "fastspeech2"])
def test_absent_weights_are_told_without_loading(name: str, tmp_path: Path) -> None:
    """Without weights, or without the library, the engine says what is missing."""
    assert engine(name, tmp_path).missing() is not None


@pytest.fixture
def transformers() -> Any:
    """Return the library, or skip."""
    pytest.importorskip("torch", reason="the extra `torch` is not installed")
    return pytest.importorskip("transformers", reason="the extra `torch` is not installed")


def save_classifier(transformers: Any, folder: Path, kind: str, **options: Any) -> None:
    """Save a tiny classifier with two labels and a word tokenizer."""
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "bye"]
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    labels = {0: "greeting", 1: "goodbye"}
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(words),
        id2label=labels,
        label2id={v: k for k, v in labels.items()},
        **options,
    )
    getattr(transformers, f"{kind}ForSequenceClassification")(config).save_pretrained(folder)
    getattr(transformers, f"{kind}Tokenizer")(str(folder / "vocab.txt")).save_pretrained(folder)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        (
            "bert-base",
            "Bert",
            {
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 16,
            },
        ),
        (
            "distilbert-base",
            "DistilBert",
            {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16},
        ),
    ],
)
def test_classifier(
    transformers: Any, tmp_path: Path, name: str, kind: str, options: dict[str, int]
) -> None:
    """A batch of texts gets intents from the model's own labels."""
    save_classifier(transformers, tmp_path / name, kind, **options)
    found = engine(name, tmp_path)
    assert found.missing() is None
    found.load()
    batch = [
        Request(inputs={"text": text}, params={"min_confidence": 0.0})
        for text in ("hello", "bye you")
    ]
    outputs = found.infer(batch)
    assert ["hello", "bye you"] == [output["text"] for output in outputs]
    assert all(output["intent"] in {"greeting", "goodbye"} for output in outputs)
    assert all(output["is"] == {output["intent"]: True} for output in outputs)


@pytest.mark.filterwarnings("ignore")
def test_pickled_weights_are_refused(transformers: Any, tmp_path: Path) -> None:
    """Weights that are not safetensors are as good as absent."""
    folder = tmp_path / "bert-base"
    options = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    save_classifier(transformers, folder, "Bert", intermediate_size=16, **options)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    found = engine("bert-base", tmp_path)
    assert "safetensors" in (found.missing() or "")
    with pytest.raises(ModelUnavailable):
        found.load()


@pytest.mark.filterwarnings("ignore")
def test_whisper(transformers: Any, tmp_path: Path) -> None:
    """A tiny Whisper turns a recording into some text, with language and length."""
    folder = tmp_path / "whisper-tiny"
    folder.mkdir()
    words = ["<|endoftext|>", "<|startoftranscript|>", "a", "b", "c", "Ġ"]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    config = transformers.WhisperConfig(
        vocab_size=len(words), d_model=16, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16,
        decoder_ffn_dim=16, max_target_positions=16, pad_token_id=0, bos_token_id=0,
        eos_token_id=0, decoder_start_token_id=1, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    transformers.WhisperForConditionalGeneration(config).save_pretrained(folder)
    transformers.GenerationConfig(
        decoder_start_token_id=1,
        eos_token_id=0,
        pad_token_id=0,
        max_length=12,
        is_multilingual=False,
    ).save_pretrained(folder)
    transformers.WhisperFeatureExtractor().save_pretrained(folder)
    transformers.WhisperTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt")
    ).save_pretrained(folder)
    found = engine("whisper-tiny", tmp_path)
    assert found.missing() is None
    found.load()
    silence = Binary(media_type="audio/wav", data=wav.encode(bytes(32_000), 16_000))
    (outputs,) = found.infer([Request(inputs={"audio": silence})])
    assert ("en", 1.0) == (outputs["language"], outputs["duration_s"])
    assert isinstance(outputs["text"], str)


@pytest.mark.filterwarnings("ignore")
def test_fastspeech(transformers: Any, tmp_path: Path) -> None:
    """A tiny FastSpeech2 with its vocoder gives a WAV file of the length it claims."""
    torch = pytest.importorskip("torch")
    folder = tmp_path / "fastspeech2"
    acoustic = transformers.FastSpeech2ConformerConfig(
        hidden_size=16, vocab_size=8, num_mel_bins=8, encoder_layers=1, decoder_layers=1,
        encoder_linear_units=16, decoder_linear_units=16, encoder_num_attention_heads=2,
        decoder_num_attention_heads=2, speech_decoder_postnet_layers=1,
        speech_decoder_postnet_units=8, duration_predictor_channels=8, pitch_predictor_channels=8,
        energy_predictor_channels=8,
    )  # fmt: skip
    vocoder = transformers.FastSpeech2ConformerHifiGanConfig(
        model_in_dim=8, upsample_initial_channel=16, upsample_rates=[4, 4],
        upsample_kernel_sizes=[8, 8], resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1, 3]],
    )  # fmt: skip
    config = transformers.FastSpeech2ConformerWithHifiGanConfig(
        model_config=acoustic.to_dict(), vocoder_config=vocoder.to_dict()
    )
    torch.manual_seed(0)
    transformers.FastSpeech2ConformerWithHifiGan(config).save_pretrained(folder)
    found: Any = engine("fastspeech2", tmp_path)
    found.model, found.device = torch_models.model(
        transformers.FastSpeech2ConformerWithHifiGan, found.spec, folder
    )
    found.model.float()  # as the engine has it, on a GPU too
    found.tokenizer = lambda _text, **_options: {"input_ids": torch.tensor([[1, 2, 3, 4, 5, 6]])}
    (outputs,) = found.infer([Request(inputs={"text": "hello"})])
    samples = (len(outputs["audio"].data) - 44) // 2
    assert pytest.approx(samples / 22_050, abs=0.001) == outputs["duration_s"]
