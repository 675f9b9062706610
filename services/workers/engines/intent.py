"""Tells what somebody wants, with the small text model we train ourselves."""

from collections.abc import Mapping, Sequence

from typing_extensions import override

from schemas.values import Value
from services.workers.engine import Request
from services.workers.engines import fields
from services.workers.engines.text_encoder import EncoderEngine


UNKNOWN = "unknown"
MIN_CONFIDENCE = 0.35


class IntentEngine(EncoderEngine):
    """Outputs `text` unchanged, `intent`, `confidence`, and `is` = {intent: true} for templates.

    Params: `min_confidence` 0 to 1: below it the intent is `unknown`.
    """

    @override
    def infer(self, batch: Sequence[Request]) -> list[Mapping[str, Value]]:
        texts = [fields.text(request) for request in batch]
        limits = [
            fields.number(request, "min_confidence", default=MIN_CONFIDENCE, low=0.0, high=1.0)
            for request in batch
        ]
        _, rows = self.encoder.run(texts)
        answers: list[Mapping[str, Value]] = []
        for text, limit, row in zip(texts, limits, rows, strict=True):
            best = int(row.argmax())
            known = text.strip() and row[best] >= limit
            intent = self.encoder.labels[best] if known else UNKNOWN
            answers.append(answer(text, intent, float(row[best])))
        return answers


def answer(text: str, intent: str, confidence: float) -> dict[str, Value]:
    """Return the outputs every model of this signature gives."""
    return {
        "text": text,
        "intent": intent,
        "confidence": round(confidence, 4),
        "is": {intent: True},
    }
