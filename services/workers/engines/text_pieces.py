"""Tokens that become text while they come: no character is cut, no stop text is given away.

Source: the offsets of text-generation-inference's and vLLM's incremental detokenizers.
"""

from collections.abc import Callable, Sequence


HELD_TOKENS_MAX = 8
"""Tokens that are waited for to complete a character, which has at most four bytes."""
_CUT = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """Decodes tokens, one after the other; a token's text depends on those before it.

    Args:
        decode: Of the tokenizer, for a few tokens.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._tokens: list[int] = []
        """Those said last, as context, and those not said yet."""
        self._said = 0
        """How many of them are said."""

    def add(self, token: int) -> str:
        """Return the text that is complete now and was not before."""
        self._tokens.append(token)
        is_long = len(self._tokens) - self._said >= HELD_TOKENS_MAX
        text = self._decode(self._tokens)
        if text.endswith(_CUT) and not is_long:
            return ""
        piece = text[len(self._decode(self._tokens[: self._said])) :]
        if piece or is_long:
            self._tokens = self._tokens[self._said :]
            self._said = len(self._tokens)
        return piece

    def rest(self) -> str:
        """Return what is left at the end, complete or not."""
        said = self._decode(self._tokens[: self._said])
        return self._decode(self._tokens)[len(said) :]


class StopTexts:
    """Ends a text before the first of some texts, and holds back what may begin one.

    Args:
        texts: Where it ends; none is empty.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts
        self._held = ""
        self.is_hit = False

    def add(self, text: str) -> str:
        """Return what is certain to come before any of them."""
        if self.is_hit:
            return ""
        whole = self._held + text
        found = [place for stop in self._texts if (place := whole.find(stop)) >= 0]
        if found:
            self.is_hit, self._held = True, ""
            return whole[: min(found)]
        held = max((_overlap(whole, stop) for stop in self._texts), default=0)
        self._held = whole[len(whole) - held :]
        return whole[: len(whole) - held]

    def rest(self) -> str:
        """Return what was held back for nothing."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of a text begin `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
