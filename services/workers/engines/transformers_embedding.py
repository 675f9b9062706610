"""Vectors of texts with an encoder of transformers: as many texts in one pass as pay."""

from collections.abc import Iterator, Sequence
from typing import Any

from schemas.errors import InvalidArgument
from services.workers.engines.torch_models import computing


PASS_TOKENS_MAX = 16 * 1024
"""Tokens of one forward pass, padding included: more take memory, and no less time."""
CPU_PASS_TOKENS_MAX = 1024
"""The same on a CPU, whose caches hold no more: measured, 8.7 ms a text where 16 000 took 20."""
_TIMES_LONGER = 2
"""A text so much longer than the shortest of a pass begins another one, rather than pad it all."""


class Embedder:
    """Embeds texts.

    Args:
        model: Gives `last_hidden_state` [text, token, dimension].
        tokenizer: Its own.
        device: Where the model is.
        positions: Tokens of a text that are read; the rest is left out.
    """

    def __init__(self, model: Any, tokenizer: Any, device: str, positions: int) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._device = device
        self._positions = positions
        pad = tokenizer.pad_token_id
        self._fill = {
            "input_ids": pad if pad is not None else tokenizer.eos_token_id or 0,
            "token_type_ids": tokenizer.pad_token_type_id,
        }
        """What stands behind a shorter text; its mask is 0."""

    def embed(self, texts: Sequence[str]) -> Any:
        """Return unit vectors float32 [text, dimension]: means of the last layer over the tokens.

        Texts of like lengths share a pass, so little is computed for padding.

        Raises:
            InvalidArgument: A text has no tokens; names `inputs.text`.
            EngineFailed: The model could not read them.
        """
        import numpy as np

        tokens = self._tokenizer(list(texts), truncation=True, max_length=self._positions)
        lengths = [len(ids) for ids in tokens["input_ids"]]
        if 0 in lengths:
            raise InvalidArgument("an empty text has no vector", field="inputs.text")
        order = sorted(range(len(texts)), key=lengths.__getitem__)
        tokens_max = CPU_PASS_TOKENS_MAX if self._device == "cpu" else PASS_TOKENS_MAX
        found = [self._pass(tokens, part) for part in passes(order, lengths, tokens_max)]
        rows = np.concatenate(found)
        back = np.empty_like(rows)
        back[order] = rows
        return back

    def _pass(self, tokens: Any, texts: Sequence[int]) -> Any:
        """Return the vectors of some of the texts, in their order."""
        import torch

        padded = {
            name: torch.tensor(
                _padded([tokens[name][text] for text in texts], self._fill.get(name, 0)),
                device=self._device,
            )
            for name in tokens
        }
        with computing("the model could not read these texts"):
            hidden = self._model(**padded).last_hidden_state.float()
        weights = padded["attention_mask"][:, :, None].float()
        mean = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
        return torch.nn.functional.normalize(mean, dim=1).cpu().numpy().astype("<f4")


def _padded(rows: Sequence[Sequence[int]], fill: int) -> list[list[int]]:
    """Return rows of one length: mean and mask want the padding behind, wherever it was learned."""
    longest = max(map(len, rows))
    return [[*row, *[fill] * (longest - len(row))] for row in rows]


def passes(order: Sequence[int], lengths: Sequence[int], tokens_max: int) -> Iterator[list[int]]:
    """Yield the texts of each forward pass: neighbours in length, bounded with their padding.

    Args:
        order: Texts, the shortest first.
        lengths: Tokens of each text.
        tokens_max: Of a pass, unless one text alone has more.
    """
    part: list[int] = []
    for text in order:
        length = lengths[text]
        is_full = (len(part) + 1) * length > tokens_max
        if part and (is_full or length >= _TIMES_LONGER * lengths[part[0]]):
            yield part
            part = []
        part.append(text)
    if part:
        yield part
