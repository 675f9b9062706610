"""Runs a Hugging Face folder of a common kind: embeddings of texts, or text that goes on."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from typing_extensions import override

from schemas.errors import InvalidArgument, ModelUnavailable
from schemas.values import Tensor, Value
from services.workers.engine import BatchEngine, Request
from services.workers.engines import fields, torch_models
from services.workers.engines.torch_models import OnTorch
from services.workers.engines.transformers_embedding import Embedder
from services.workers.engines.transformers_generation import Writer


TOKENS_MAX = 8192
"""Where neither the model's config nor its tokenizer says less."""
BATCH_TEXTS = 32
"""Texts of one call, where the catalogue entry does not say."""
BATCH_TEXTS_MAX = 1024
_CLASSES = {"embedding": "AutoModel", "generation": "AutoModelForCausalLM"}
_INPUTS = {"embedding": {"text"}, "generation": {"text", "messages"}}
_OUTPUTS = {"embedding": {"embedding"}, "generation": {"text", "tokens", "finish_reason", "usage"}}


class TransformersEngine(OnTorch, BatchEngine):
    """Param `task` of the catalogue entry says what the folder is for.

    Others are `device`, `strict_device` and `dtype`.
    `embedding`: `embedding` FP32 [text, dimension] of input `text`, one or a list: the mean of the
    last layer over the tokens, as a unit vector. Texts of several requests are computed together,
    up to `max_batch_size` (32) of the entry's params in one call.
    `generation`: `text` that goes on after input `text`, or answers `messages`, as it grows where
    somebody takes it so; `tokens`, how many, `finish_reason` and `usage`. Params of a request:
    `chat` (true: `text` is what a user says), `system`, and those of `Sampling`.
    """

    tokenizer: Any = None
    writer: Writer | None = None
    embedder: Embedder | None = None

    @override
    def missing(self) -> str | None:
        try:
            task = self._task()
            self.rows_max()
        except ModelUnavailable as error:
            return error.message
        unknown = fields.unknown_port(self.spec, task, _INPUTS[task], _OUTPUTS[task])
        if unknown is not None:
            return unknown
        return torch_models.missing(self.spec, self.models_dir, "numpy")

    @override
    def load(self) -> None:
        task = self._task()
        import transformers

        folder = torch_models.directory(self.spec, self.models_dir)
        self.tokenizer = torch_models.pretrained(transformers.AutoTokenizer, folder)
        kind = getattr(transformers, _CLASSES[task])
        self.model, self.device = torch_models.model(kind, self.spec, folder)
        parts = (self.model, self.tokenizer, self.device, self._positions())
        if task == "generation":
            self.writer = Writer(*parts)
        else:
            self.embedder = Embedder(*parts)

    @override
    def batch_key(self, request: Request) -> Hashable | None:
        """Return one key for all embeddings whose texts are texts; a generation is alone."""
        if self._task() == "generation":
            return None
        try:
            fields.texts(request)
        except InvalidArgument:
            return None  # so it fails nobody else
        return "embedding"

    @override
    def rows(self, request: Request) -> int:
        return len(fields.texts(request))

    @override
    def rows_max(self) -> int:
        """Return how many texts one call may have.

        Raises:
            ModelUnavailable: The catalogue says what is no number of texts.
        """
        asked = self.spec.params.get("max_batch_size", BATCH_TEXTS)
        if type(asked) is not int or not 1 <= asked <= BATCH_TEXTS_MAX:
            raise ModelUnavailable(f"'max_batch_size' in params is 1 to {BATCH_TEXTS_MAX} texts")
        return asked

    @override
    def infer(self, batch: Sequence[Request]) -> list[Mapping[str, Value]]:
        if self.embedder is not None:
            return self._embed(self.embedder, batch)
        assert self.writer is not None, "it is loaded"
        return [self._write(self.writer, request) for request in batch]

    @override
    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
        self.tokenizer = self.writer = self.embedder = None
        super().close()

    def _task(self) -> str:
        """Return what the folder is for.

        Raises:
            ModelUnavailable: No such task.
        """
        task = self.spec.params.get("task")
        if task not in _CLASSES:
            raise ModelUnavailable(f"'task' of the catalogue entry is one of {', '.join(_CLASSES)}")
        return str(task)

    def _embed(self, embedder: Embedder, batch: Sequence[Request]) -> list[Mapping[str, Value]]:
        texts = [fields.texts(request) for request in batch]
        rows = embedder.embed([text for some in texts for text in some])
        found: list[Mapping[str, Value]] = []
        for some in texts:
            ours, rows = rows[: len(some)], rows[len(some) :]
            tensor = Tensor(datatype="FP32", shape=ours.shape, data=ours.tobytes())
            found.append({"embedding": tensor})
        return found

    def _write(self, writer: Writer, request: Request) -> Mapping[str, Value]:
        names = [port.name for port in self.spec.outputs]
        wanted = request if "text" in names else replace(request, emit=None)
        written = writer.write(wanted)
        return {name: written[name] for name in names}

    def _positions(self) -> int:
        """Return how many tokens the model reads."""
        known = getattr(self.model.config, "max_position_embeddings", None) or TOKENS_MAX
        return int(min(TOKENS_MAX, known, self.tokenizer.model_max_length))
