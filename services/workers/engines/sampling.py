"""How the next token is chosen, and when a text ends: the parameters of a request."""

from dataclasses import dataclass
from typing import Any, Self

from schemas.errors import InvalidArgument
from services.workers.engine import Request
from services.workers.engines import fields


NEW_TOKENS_MAX = 4096
NEW_TOKENS = 128
TEMPERATURE_MAX = 2.0
TOP_K_MAX = 1_000_000
PENALTY_MIN = 0.1
PENALTY_MAX = 10.0
SEED_MAX = 2**53
"""What every JSON can say."""
STOPS_MAX = 16
STOP_CHARS_MAX = 256


@dataclass(frozen=True)
class Sampling:
    """What a request wants; by default always the likeliest token."""

    new_tokens_max: int = NEW_TOKENS
    temperature: float = 0.0
    """0: the likeliest token."""
    top_p: float = 1.0
    """Of the likeliest tokens, those that have this probability together."""
    top_k: int = 0
    """Of the likeliest tokens so many; 0: all."""
    repetition_penalty: float = 1.0
    seed: int | None = None
    """The same seed gives the same text on the same machine; None: another one each time."""
    stops: tuple[str, ...] = ()
    """Texts before which the answer ends."""

    @classmethod
    def of(cls, request: Request) -> Self:
        """Read the parameters of a request.

        Raises:
            InvalidArgument: One is out of range; names it.
        """
        seed = None
        if request.params.get("seed") is not None:
            seed = fields.whole(request, "seed", default=0, low=0, high=SEED_MAX)
        return cls(
            fields.whole(request, "max_new_tokens", default=NEW_TOKENS, low=1, high=NEW_TOKENS_MAX),
            fields.number(request, "temperature", default=0.0, low=0.0, high=TEMPERATURE_MAX),
            fields.number(request, "top_p", default=1.0, low=0.0, high=1.0),
            fields.whole(request, "top_k", default=0, low=0, high=TOP_K_MAX),
            fields.number(
                request, "repetition_penalty", default=1.0, low=PENALTY_MIN, high=PENALTY_MAX
            ),
            seed,
            stops(request),
        )

    def processors(self, device: str) -> list[Any]:
        """Return what transformers applies to the scores [1, token], in order.

        The last one leaves only the token that it drew: the library, which takes the likeliest,
        then draws nothing itself, from random numbers that all requests would share.
        """
        import transformers

        found: list[Any] = []
        if self.repetition_penalty != 1:
            found.append(transformers.RepetitionPenaltyLogitsProcessor(self.repetition_penalty))
        if self.temperature == 0:
            return found
        found.append(transformers.TemperatureLogitsWarper(float(self.temperature)))
        if self.top_k:
            found.append(transformers.TopKLogitsWarper(self.top_k))
        if self.top_p < 1:
            found.append(transformers.TopPLogitsWarper(float(self.top_p)))
        return [*found, _Draw(self.seed, device)]


class _Draw:
    """Draws a token, with random numbers of its own."""

    def __init__(self, seed: int | None, device: str) -> None:
        import torch

        self._random = torch.Generator(device)
        if seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(seed)

    def __call__(self, _: Any, scores: Any) -> Any:
        """Return scores [1, token] that leave one token."""
        import torch

        odds = scores.float().softmax(dim=-1)
        drawn = torch.multinomial(odds, 1, generator=self._random)
        return torch.full_like(scores, -torch.inf).scatter(1, drawn, 0.0)


def stops(request: Request) -> tuple[str, ...]:
    """Return the texts before which an answer ends.

    Raises:
        InvalidArgument: They are none; names `params.stop`.
    """
    given = request.params.get("stop")
    found = [] if given is None else [given] if isinstance(given, str) else given
    fits = isinstance(found, list) and all(
        isinstance(item, str) and 0 < len(item) <= STOP_CHARS_MAX for item in found
    )
    if not fits or len(found) > STOPS_MAX:
        raise InvalidArgument(
            f"'stop' must be up to {STOPS_MAX} texts of 1 to {STOP_CHARS_MAX} characters",
            field="params.stop",
        )
    return tuple(found)
