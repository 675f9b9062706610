"""Text that goes on, token by token, with a causal language model of transformers."""

from typing import Any

from schemas.errors import Cancelled, InvalidArgument
from schemas.values import Value
from services.workers.engine import Request
from services.workers.engines import fields
from services.workers.engines.chat_template import ChatTemplate, as_text, checked, pieces
from services.workers.engines.sampling import Sampling
from services.workers.engines.text_pieces import Detokenizer, StopTexts
from services.workers.engines.torch_models import computing


class Writer:
    """Goes on after a text, or answers a conversation.

    Args:
        model: A causal language model.
        tokenizer: Its own.
        device: Where the model is.
        positions: Tokens that a text and its continuation may have together.
    """

    def __init__(self, model: Any, tokenizer: Any, device: str, positions: int) -> None:
        import transformers

        self._model = model
        self._tokenizer = tokenizer
        self._device = device
        self._positions = positions
        found = model.generation_config
        ends = found.eos_token_id
        self._ends = frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends])
        self._pad = tokenizer.pad_token_id or tokenizer.eos_token_id or 0
        # what else the folder asks for there is not what the request says
        model.generation_config = transformers.GenerationConfig(
            bos_token_id=found.bos_token_id, eos_token_id=ends, pad_token_id=self._pad
        )
        template = getattr(tokenizer, "chat_template", None) or ""
        if isinstance(template, dict):
            template = template.get("default", "")
        named = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
        self._template = ChatTemplate(str(template), named)

    def close(self) -> None:
        """End what was started."""
        self._template.close()

    def write(self, request: Request) -> dict[str, Value]:
        """Return `text`, `tokens`, `finish_reason` and `usage`; emit the text while it grows.

        Raises:
            InvalidArgument: An input or parameter is malformed, or too long; names it.
            FailedPrecondition: A conversation, and the folder has no chat template.
            EngineFailed: The model could not go on.
            Cancelled: Nobody waits for the text any more.
        """
        sampling = Sampling.of(request)
        tokens, field = self._prompt(request)
        length = tokens["input_ids"].shape[1]
        if not 0 < length < self._positions:
            raise InvalidArgument(
                f"'{field}' has {length} tokens; the model reads 1 to {self._positions - 1}",
                field=f"inputs.{field}",
            )
        growing = _Growing(request, self._decode, sampling.stops, self._ends)
        self._generate(
            tokens, sampling, growing, min(sampling.new_tokens_max, self._positions - length)
        )
        if request.is_stopped():
            raise Cancelled("nobody waits for this text any more")
        growing.end()
        usage = {"prompt_tokens": length, "completion_tokens": growing.count}
        return {
            "text": "".join(growing.said),
            "tokens": growing.count,
            "finish_reason": "stop" if growing.is_over else "length",
            "usage": {**usage, "total_tokens": length + growing.count},
        }

    def _generate(self, tokens: Any, sampling: Sampling, growing: "_Growing", count: int) -> None:
        from transformers import LogitsProcessorList, StoppingCriteriaList

        with computing("the model could not go on from this text"):
            self._model.generate(
                **tokens,
                do_sample=False,
                max_new_tokens=count,
                logits_processor=LogitsProcessorList(sampling.processors(self._device)),
                stopping_criteria=StoppingCriteriaList([growing]),
            )

    def _decode(self, tokens: Any) -> str:
        return str(
            self._tokenizer.decode(
                list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    def _prompt(self, request: Request) -> tuple[Any, str]:
        """Return the tokens to go on after, and the input that they are of."""
        messages = request.inputs.get("messages")
        system = request.params.get("system", "")
        if not isinstance(system, str):
            raise InvalidArgument("'system' must be text", field="params.system")
        is_chat = fields.flag(request, "chat", default=bool(system))
        name = "text" if messages is None else "messages"
        if messages is None:
            text = fields.text(request)
            if not is_chat:
                return self._tokenizer(text, return_tensors="pt").to(self._device), name
            messages = [{"role": "user", "content": text}]
        if system:
            messages = [{"role": "system", "content": system}, *checked(messages)]
        return self._conversation(checked(messages)), name

    def _conversation(self, messages: list[dict[str, Any]]) -> Any:
        """Return the tokens of a conversation; what looks like one of them in it is text."""
        import torch

        marked = as_text(messages, self._tokenizer.get_added_vocab())
        ids: list[int] = []
        for piece, is_text in pieces(self._template.render(marked)):
            found = self._tokenizer(
                piece, add_special_tokens=False, split_special_tokens=is_text, verbose=False
            )
            ids += found["input_ids"]
        tokens = torch.tensor([ids], device=self._device, dtype=torch.long)
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


class _Growing:
    """Hears of each token; says its text, and whether it was the last one.

    The library may call once more after the last one.
    """

    def __init__(
        self, request: Request, decode: Any, stops: tuple[str, ...], ends: frozenset[int]
    ) -> None:
        self._request = request
        self._words = Detokenizer(decode)
        self._stops = StopTexts(stops)
        self._ends = ends
        self.count = 0
        self.said: list[str] = []
        self.is_over = False
        """Whether the text ended by itself."""

    def __call__(self, input_ids: Any, *_: Any, **__: Any) -> bool:
        """Take the last of the tokens [1, token]."""
        if self.is_over or self._request.is_stopped():
            return True
        token = int(input_ids[0, -1])
        self.count += 1
        self._say(self._stops.add(self._words.add(token)))
        self.is_over = self._stops.is_hit or token in self._ends
        return self.is_over

    def end(self) -> None:
        """Say what was held back."""
        self._say(self._stops.add(self._words.rest()))
        self._say(self._stops.rest())
        self.is_over = self.is_over or self._stops.is_hit

    def _say(self, text: str) -> None:
        if text:
            self.said.append(text)
            if self._request.emit is not None:
                self._request.emit({"text": text})
