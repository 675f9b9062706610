"""Speaks text with FastSpeech2 Conformer and its HiFi-GAN vocoder, from local weights."""

from collections.abc import Mapping, Sequence
from typing import Any

from typing_extensions import override

from schemas import wav
from schemas.errors import InvalidArgument
from schemas.values import Binary, Value
from services.workers.engine import Engine, Request
from services.workers.engines import fields, torch_models
from services.workers.engines.torch_models import OnTorch


TEXT_CHARS_MAX = 1_000
RATE_HZ = 22_050
"""The vocoder was trained on LJSpeech at this rate; its config does not say so."""


class TransformersSpeechEngine(OnTorch, Engine):
    """Output `audio` is a WAV file of input `text`, `duration_s` its length; English only.

    Takes and ignores the parameters of `espeak`, which stands in for it.
    """

    tokenizer: Any = None

    @override
    def missing(self) -> str | None:
        return torch_models.missing(self.spec, self.models_dir, "g2p_en", "numpy")

    @override
    def load(self) -> None:
        from transformers import FastSpeech2ConformerTokenizer, FastSpeech2ConformerWithHifiGan

        folder = torch_models.directory(self.spec, self.models_dir)
        self.tokenizer = torch_models.pretrained(FastSpeech2ConformerTokenizer, folder)
        self.model, self.device = torch_models.model(
            FastSpeech2ConformerWithHifiGan, self.spec, folder
        )
        self.model.float()

    @override
    def infer(self, batch: Sequence[Request]) -> list[Mapping[str, Value]]:
        return [self._speak(request) for request in batch]

    @override
    def close(self) -> None:
        self.tokenizer = None
        super().close()

    def _speak(self, request: Request) -> Mapping[str, Value]:
        text = fields.text(request, chars_max=TEXT_CHARS_MAX)
        if not text.strip():
            raise InvalidArgument("'text' is empty: there is nothing to say", field="inputs.text")
        ids = self.tokenizer(text, return_tensors="pt")["input_ids"].to(self.device)
        with torch_models.computing("the model could not speak this text"):
            wave = self.model(ids).waveform.flatten().float().cpu().numpy()
        pcm = (wave.clip(-1.0, 1.0) * 32767.0).round().astype("<i2").tobytes()
        return {
            "audio": Binary(media_type="audio/wav", data=wav.encode(pcm, RATE_HZ)),
            "duration_s": round(len(wave) / RATE_HZ, 3),
        }
