"""Turns speech into text with Whisper, from local weights."""

from collections.abc import Mapping, Sequence
from typing import Any

from typing_extensions import override

from schemas.errors import InvalidArgument
from schemas.values import Value
from services.workers.engine import Engine, Request
from services.workers.engines import audio_io, torch_models
from services.workers.engines.torch_models import OnTorch


WINDOW_S = 30.0
LANGUAGE = "en"


class TransformersWhisperEngine(OnTorch, Engine):
    """Outputs `text`, `language` and `duration_s` of input `audio`; long audio in 30 s windows.

    Params: `language`, what is spoken, an ISO 639-1 code.
    """

    processor: Any = None

    @override
    def missing(self) -> str | None:
        return torch_models.missing(self.spec, self.models_dir, "numpy")

    @override
    def load(self) -> None:
        from transformers import WhisperForConditionalGeneration, WhisperProcessor

        folder = torch_models.directory(self.spec, self.models_dir)
        self.processor = torch_models.pretrained(WhisperProcessor, folder)
        self.model, self.device = torch_models.model(
            WhisperForConditionalGeneration, self.spec, folder
        )

    @override
    def infer(self, batch: Sequence[Request]) -> list[Mapping[str, Value]]:
        return [self._transcribe(request) for request in batch]

    @override
    def close(self) -> None:
        self.processor = None
        super().close()

    def _transcribe(self, request: Request) -> Mapping[str, Value]:
        language = self._language(request)
        audio = audio_io.from_request(request)
        starts = [index * WINDOW_S for index in range(int(audio.duration_s // WINDOW_S) + 1)]
        windows = [audio.between(start, start + WINDOW_S) for start in starts]
        texts = [self._window(part, language) for part in windows if part.duration_s > 0]
        return {
            "text": " ".join(text for text in texts if text),
            "language": language,
            "duration_s": audio.duration_s,
        }

    def _language(self, request: Request) -> str:
        language = request.params.get("language", LANGUAGE)
        known = getattr(self.model.generation_config, "lang_to_id", None)
        if not isinstance(language, str) or (known and f"<|{language}|>" not in known):
            raise InvalidArgument(
                "'language' is a code the model knows, such as en", field="params.language"
            )
        return language

    def _window(self, audio: audio_io.Audio, language: str) -> str:
        options = {}
        if getattr(self.model.generation_config, "is_multilingual", False):
            options = {"language": language, "task": "transcribe"}
        features = self.processor(
            audio.samples, sampling_rate=audio_io.RATE_HZ, return_tensors="pt"
        ).input_features
        with torch_models.computing("the model could not transcribe this audio"):
            ids = self.model.generate(features.to(self.device, self.model.dtype), **options)
        return str(self.processor.batch_decode(ids, skip_special_tokens=True)[0]).strip()
