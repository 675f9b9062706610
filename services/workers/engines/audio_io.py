"""Reads and writes WAV files without ever trusting one.

Everything an engine hears passes here first and becomes float32 mono at 16 kHz. Broken files are
refused (`schemas.wav`) before any C library sees them.

Source: windowed-sinc resampling, Smith & Gossett (1984).
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from schemas import wav
from schemas.errors import InvalidArgument
from services.workers.engine import Request
from services.workers.engines import fields


if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RATE_HZ = 16_000
AUDIO_BYTES_MAX = 64 * 1024 * 1024

_ZERO_CROSSINGS = 16
_BLOCK_ROWS = 32 * 1024


@dataclass(frozen=True)
class Audio:
    """Speech ready for a model."""

    samples: "NDArray[np.float32]"
    """float32 [sample], mono, 16 kHz, in [-1, 1]."""

    @property
    def duration_s(self) -> float:
        """Length in seconds, to the millisecond."""
        return round(len(self.samples) / RATE_HZ, 3)

    def pcm16(self) -> bytes:
        """Return the samples as 16-bit little-endian PCM."""
        return bytes((self.samples * 32767.0).round().astype("<i2").tobytes())

    def between(self, start_s: float, end_s: float) -> "Audio":
        """Return the part from `start_s` to `end_s`."""
        return Audio(self.samples[max(0, int(start_s * RATE_HZ)) : int(end_s * RATE_HZ)])


def from_request(request: Request, name: str = "audio") -> Audio:
    """Return the audio of one input.

    Raises:
        InvalidArgument: No readable WAV, or too long; names `inputs.<name>` and the remedy.
    """
    data = fields.data(request, name, bytes_max=AUDIO_BYTES_MAX)
    try:
        return decode(data)
    except InvalidArgument as error:
        raise InvalidArgument(error.message, field=f"inputs.{name}") from error


def decode(data: bytes) -> Audio:
    """Decode a WAV file to mono at 16 kHz.

    Raises:
        InvalidArgument: What is wrong with the file.
    """
    import numpy as np

    form, body = wav.parse(data)
    wide = _samples(body, form)
    mono = wide.reshape(-1, form.channels).mean(axis=1, dtype=np.float32)
    return Audio(np.clip(resample(mono, form.rate_hz), -1.0, 1.0))


def _samples(body: bytes, form: wav.Format) -> "NDArray[np.float32]":
    """Return float32 [frame * channel] in [-1, 1]."""
    import numpy as np

    if form.tag == wav.FLOAT:
        floats = np.frombuffer(body, f"<f{form.bits // 8}").astype(np.float32)
        if not np.isfinite(floats).all():
            raise InvalidArgument("the WAV file holds samples that are not numbers")
        return np.clip(floats, -1.0, 1.0)
    if form.bits == 8:  # noqa: PLR2004 - the one unsigned width
        return (np.frombuffer(body, np.uint8).astype(np.float32) - 128.0) / 128.0
    if form.bits == 24:  # noqa: PLR2004 - the width numpy lacks
        triples = np.frombuffer(body, np.uint8).reshape(-1, 3)
        padded = np.zeros((len(triples), 4), np.uint8)
        padded[:, 1:] = triples
        return padded.view("<i4")[:, 0].astype(np.float32) / 2.0**31
    integers = np.frombuffer(body, f"<i{form.bits // 8}").astype(np.float32)
    return integers / np.float32(2.0 ** (form.bits - 1))


def resample(samples: "NDArray[np.float32]", rate_hz: int) -> "NDArray[np.float32]":
    """Bring float32 [sample] from `rate_hz` to 16 kHz with a linear-phase polyphase filter."""
    import numpy as np

    ratio = Fraction(RATE_HZ, rate_hz)
    up, down = ratio.numerator, ratio.denominator
    if ratio == 1:
        return samples
    cutoff = min(1.0, float(ratio)) * 0.95
    half = int(np.ceil(_ZERO_CROSSINGS / cutoff))
    offsets = np.arange(-half + 1, half + 1)
    padded = np.concatenate([np.zeros(half, np.float32), samples, np.zeros(half + 1, np.float32)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half)
    output = np.zeros((len(samples) * up - 1) // down + 1, np.float32)
    for phase in range(min(up, len(output))):
        start, part = divmod(phase * down, up)
        at = offsets - part / up
        taper = np.cos(np.pi * np.clip(at / (half + 1), -1, 1) / 2) ** 2
        kernel = (cutoff * np.sinc(cutoff * at) * taper).astype(np.float32)
        target = output[phase::up]
        rows = windows[start + 1 :: down]
        for first in range(0, len(target), _BLOCK_ROWS):
            block = slice(first, min(first + _BLOCK_ROWS, len(target)))
            target[block] = rows[block] @ kernel
    return output
