"""Tells what somebody wants with a fine-tuned BERT or DistilBERT, from local weights."""

from collections.abc import Mapping, Sequence
from typing import Any

from typing_extensions import override

from schemas.values import Value
from services.workers.engine import Engine, Request
from services.workers.engines import fields, torch_models
from services.workers.engines.intent import MIN_CONFIDENCE, UNKNOWN, answer
from services.workers.engines.torch_models import OnTorch


TOKENS_MAX = 512


class TransformersClassifierEngine(OnTorch, Engine):
    """Outputs what the `intent` engine gives; the labels are those of the model's config.

    Params: `min_confidence` 0 to 1: below it the intent is `unknown`.
    """

    tokenizer: Any = None

    @override
    def missing(self) -> str | None:
        return torch_models.missing(self.spec, self.models_dir)

    @override
    def load(self) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        folder = torch_models.directory(self.spec, self.models_dir)
        self.tokenizer = torch_models.pretrained(AutoTokenizer, folder)
        self.model, self.device = torch_models.model(
            AutoModelForSequenceClassification, self.spec, folder
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
        self.tokenizer = None
        super().close()

    def _probabilities(self, texts: list[str]) -> list[list[float]]:
        """Return the probability of each label, [text][label]."""
        tokens_max = min(TOKENS_MAX, self.model.config.max_position_embeddings)
        tokens = self.tokenizer(
            texts, padding=True, truncation=True, max_length=tokens_max, return_tensors="pt"
        ).to(self.device)
        with torch_models.computing("the model could not read this text"):
            logits = self.model(**tokens).logits
        rows: list[list[float]] = logits.float().softmax(dim=-1).tolist()
        return rows
