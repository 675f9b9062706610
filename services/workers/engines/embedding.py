"""Turns texts into vectors, with the small text model we train ourselves."""

from collections.abc import Mapping, Sequence

from typing_extensions import override

from schemas.values import Tensor, Value
from services.workers.engine import Request
from services.workers.engines import fields
from services.workers.engines.text_encoder import EncoderEngine


class EmbeddingEngine(EncoderEngine):
    """Output `embedding` is FP32 [text, dimension]: a unit vector for each text of input `text`."""

    @override
    def infer(self, batch: Sequence[Request]) -> list[Mapping[str, Value]]:
        groups = [fields.texts(request) for request in batch]
        vectors, _ = self.encoder.run([text for group in groups for text in group])
        answers: list[Mapping[str, Value]] = []
        first = 0
        for group in groups:
            rows = vectors[first : first + len(group)]
            first += len(group)
            data = rows.astype("<f4").tobytes()
            answers.append({"embedding": Tensor(datatype="FP32", shape=rows.shape, data=data)})
        return answers
