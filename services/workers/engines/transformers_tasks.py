"""Runs a Hugging Face folder of a common kind: embeddings of texts, or text that goes on."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from typing_extensions import override

from schemas.errors import Cancelled, EngineFailed, InvalidArgument, ModelUnavailable
from schemas.values import Tensor, Value
from services.workers.engine import Engine, Request
from services.workers.engines import fields, torch_models
from services.workers.engines.torch_models import OnTorch


NEW_TOKENS_MAX = 4096
TOKENS_MAX = 8192
"""Where the model's config says nothing of its positions."""
NEW_TOKENS = 128


class TransformersEngine(OnTorch, Engine):
    """Param `task` of the catalogue entry says what the folder is for; `device`, `strict_device`.

    `embedding`: `embedding` FP32 [text, dimension] of input `text`, one or a list: the mean of the
    last layer over the tokens, as a unit vector.
    `generation`: `text` that goes on after input `text`, always the likeliest token; `tokens`, how
    many. Params of a request: `max_new_tokens` (128).
    """

    tokenizer: Any = None

    @override
    def missing(self) -> str | None:
        try:
            self._task()
        except ModelUnavailable as error:
            return error.message
        return torch_models.missing(self.spec, self.models_dir, "numpy")

    @override
    def load(self) -> None:
        class_name, _ = self._task()
        import transformers

        folder = torch_models.directory(self.spec, self.models_dir)
        self.tokenizer = torch_models.pretrained(transformers.AutoTokenizer, folder)
        kind = getattr(transformers, class_name)
        self.model, self.device = torch_models.model(kind, self.spec, folder)

    @override
    def infer(self, batch: Sequence[Request]) -> list[Mapping[str, Value]]:
        _, compute = self._task()
        return [compute(request) for request in batch]

    @override
    def close(self) -> None:
        self.tokenizer = None
        super().close()

    def _task(self) -> tuple[str, Callable[[Request], Mapping[str, Value]]]:
        """Return the class of the model and what computes.

        Raises:
            ModelUnavailable: No such task.
        """
        tasks = {
            "embedding": ("AutoModel", self._embed),
            "generation": ("AutoModelForCausalLM", self._generate),
        }
        task = self.spec.params.get("task")
        if task not in tasks:
            raise ModelUnavailable(f"'task' of the catalogue entry is one of {', '.join(tasks)}")
        return tasks[task]

    def _embed(self, request: Request) -> Mapping[str, Value]:
        import torch

        texts = fields.texts(request)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        tokens = self._tokens(texts, padding=True, truncation=True, max_length=self._positions())
        try:
            with torch.inference_mode():
                hidden = self.model(**tokens).last_hidden_state.float()
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise EngineFailed("the model could not read these texts") from error
        weights = tokens["attention_mask"][:, :, None].float()
        mean = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
        rows = torch.nn.functional.normalize(mean, dim=1).cpu().numpy().astype("<f4")
        data = rows.tobytes()
        return {"embedding": Tensor(datatype="FP32", shape=rows.shape, data=data)}

    def _generate(self, request: Request) -> Mapping[str, Value]:
        import torch
        from transformers import StoppingCriteriaList

        text = fields.text(request)
        wanted = fields.number(
            request, "max_new_tokens", default=NEW_TOKENS, low=1, high=NEW_TOKENS_MAX
        )
        tokens = self._tokens(text)
        length = tokens["input_ids"].shape[1]
        if not 0 < length < self._positions():
            raise InvalidArgument(
                f"'text' has {length} tokens; the model reads 1 to {self._positions() - 1}",
                field="inputs.text",
            )
        wanted = min(int(wanted), self._positions() - length)
        try:
            with torch.inference_mode():
                ids = self.model.generate(
                    **tokens,
                    do_sample=False,
                    max_new_tokens=wanted,
                    pad_token_id=self.tokenizer.pad_token_id or self.tokenizer.eos_token_id or 0,
                    stopping_criteria=StoppingCriteriaList([lambda *_, **__: request.is_stopped()]),
                )
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise EngineFailed("the model could not go on from this text") from error
        if request.is_stopped():
            raise Cancelled("nobody waits for this text any more")
        fresh = ids[0, length:]
        said = self.tokenizer.decode(fresh, skip_special_tokens=True)
        return {"text": said, "tokens": len(fresh)}

    def _tokens(self, texts: Any, **options: Any) -> Any:
        return self.tokenizer(texts, return_tensors="pt", **options).to(self.device)

    def _positions(self) -> int:
        return min(TOKENS_MAX, getattr(self.model.config, "max_position_embeddings", TOKENS_MAX))
