"""Tells what somebody wants with a fine-tuned BERT or DistilBERT, from local weights."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from typing_extensions import override

from schemas.errors import EngineFailed
from schemas.values import Value
from services.workers.engine import Engine, Request
from services.workers.engines import fields, torch_models
from services.workers.engines.intent import MIN_CONFIDENCE, UNKNOWN, answer


TOKENS_MAX = 512


class TransformersClassifierEngine(Engine):
    """Outputs what the `intent` engine gives; the labels are those of the model's config.

    Params: `min_confidence` 0 to 1: below it the intent is `unknown`.
    """

    packages: ClassVar[tuple[str, ...]] = ("torch", "transformers")
    model: Any = None
    tokenizer: Any = None
    device: str = "cpu"

    @override
    def missing(self) -> str | None:
        return torch_models.missing(self.spec, self.models_dir)

    @override
    def devices(self) -> tuple[str, ...]:
        return (self.device,)

    @override
    def load(self) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        torch_models.keep_share(self.spec)
        folder = torch_models.directory(self.spec, self.models_dir)
        self.tokenizer = torch_models.pretrained(AutoTokenizer, folder)
        self.model, self.device = torch_models.model(
            AutoModelForSequenceClassification, folder, self.spec.params
        )

    @override
    def infer(self, batch: Sequence[Request]) -> list[Mapping[str, Value]]:
        texts = [fields.text(request) for request in batch]
        limits = [
            fields.number(request, "min_confidence", default=MIN_CONFIDENCE, low=0.0, high=1.0)
            for request in batch
        ]
        answers: list[Mapping[str, Value]] = []
        for text, limit, row in zip(texts, limits, self._probabilities(texts), strict=True):
            best = max(range(len(row)), key=row.__getitem__)
            intent = str(self.model.config.id2label[best]) if row[best] >= limit else UNKNOWN
            answers.append(answer(text, intent, row[best]))
        return answers

    @override
    def close(self) -> None:
        self.model = self.tokenizer = None

    def _probabilities(self, texts: list[str]) -> list[list[float]]:
        """Return the probability of each label, [text][label]."""
        import torch

        tokens_max = min(TOKENS_MAX, self.model.config.max_position_embeddings)
        tokens = self.tokenizer(
            texts, padding=True, truncation=True, max_length=tokens_max, return_tensors="pt"
        ).to(self.device)
        try:
            with torch.inference_mode():
                logits = self.model(**tokens).logits
        except (RuntimeError, ValueError, IndexError) as error:
            raise EngineFailed("the model could not read this text") from error
        rows: list[list[float]] = logits.float().softmax(dim=-1).tolist()
        return rows
