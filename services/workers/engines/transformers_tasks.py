"""Runs a Hugging Face folder of a common kind: embeddings of texts, or text that goes on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from typing_extensions import override

from schemas.errors import EngineFailed, ModelUnavailable
from schemas.values import Tensor, Value
from services.workers.engine import Engine, Request
from services.workers.engines import fields, torch_models
from services.workers.engines.transformers_generation import Writer


TOKENS_MAX = 8192
"""Where the model's config says nothing of its positions."""
_INPUTS = {"embedding": {"text"}, "generation": {"text", "messages"}}
_OUTPUTS = {"embedding": {"embedding"}, "generation": {"text", "tokens", "finish_reason", "usage"}}


class TransformersEngine(Engine):
    """Param `task` of the catalogue entry says what the folder is for; `device`, `strict_device`.

    `embedding`: `embedding` FP32 [text, dimension] of input `text`, one or a list: the mean of the
    last layer over the tokens, as a unit vector.
    `generation`: `text` that goes on after input `text`, or answers `messages`, as it grows where
    somebody takes it so; `tokens`, how many, `finish_reason` and `usage`. Params of a request:
    `chat` (true: `text` is what a user says), `system`, and those of `Sampling`.
    """

    packages: ClassVar[tuple[str, ...]] = ("torch", "transformers")
    model: Any = None
    tokenizer: Any = None
    writer: Any = None
    device: str = "cpu"

    @override
    def missing(self) -> str | None:
        try:
            self._task()
        except ModelUnavailable as error:
            return error.message
        task = self.spec.params["task"]
        for side, ports, known in (
            ("input", self.spec.inputs, _INPUTS[task]),
            ("output", self.spec.outputs, _OUTPUTS[task]),
        ):
            for port in ports:
                if port.name not in known:
                    names = ", ".join(sorted(known))
                    return f"the task '{task}' has no {side} '{port.name}', only {names}"
        return torch_models.missing(self.spec, self.models_dir, "numpy")

    @override
    def load(self) -> None:
        class_name, _ = self._task()
        import transformers

        torch_models.keep_share(self.spec)
        folder = torch_models.directory(self.spec, self.models_dir)
        self.tokenizer = torch_models.pretrained(transformers.AutoTokenizer, folder)
        kind = getattr(transformers, class_name)
        self.model, self.device = torch_models.model(kind, folder, self.spec.params)
        if self.spec.params["task"] == "generation":
            self.writer = Writer(self.model, self.tokenizer, self.device, self._positions())

    @override
    def infer(self, batch: Sequence[Request]) -> list[Mapping[str, Value]]:
        _, compute = self._task()
        return [compute(request) for request in batch]

    @override
    def devices(self) -> tuple[str, ...]:
        return (self.device,)

    @override
    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
        self.model = self.tokenizer = self.writer = None

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
        names = [port.name for port in self.spec.outputs]
        wanted = request if "text" in names else replace(request, emit=None)
        written = self.writer.write(wanted)
        return {name: written[name] for name in names}

    def _tokens(self, texts: Any, **options: Any) -> Any:
        return self.tokenizer(texts, return_tensors="pt", **options).to(self.device)

    def _positions(self) -> int:
        return min(TOKENS_MAX, getattr(self.model.config, "max_position_embeddings", TOKENS_MAX))
