"""Reads and writes WAV files without ever trusting one.

Everything an engine hears passes here first: 8 to 32 bit PCM or float, up to 8 channels, 4 to
192 kHz become float32 mono at 16 kHz. Broken files are refused before any C library sees them.

Source: "Multimedia Programming Interface and Data Specifications 1.0" (1991) for RIFF/WAVE;
WAVE_FORMAT_EXTENSIBLE from Microsoft's mmreg.h; windowed-sinc resampling, Smith & Gossett (1984).
"""

import struct
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from schemas.errors import InvalidArgument
from services.workers.engine import Request
from services.workers.engines import fields


if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RATE_HZ = 16_000
RATE_HZ_MIN = 4_000
RATE_HZ_MAX = 192_000
CHANNELS_MAX = 8
DURATION_S_MAX = 600.0
AUDIO_BYTES_MAX = 64 * 1024 * 1024

_CHUNKS_MAX = 1024
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_ZERO_CROSSINGS = 16
_BLOCK_ROWS = 32 * 1024
_OTHER_FORMATS = {
    b"OggS": "Ogg",
    b"fLaC": "FLAC",
    b"ID3": "MP3",
    b"\xff\xfb": "MP3",
    b"FORM": "AIFF",
    b"\x1a\x45\xdf\xa3": "WebM",
}


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


@dataclass(frozen=True)
class _Format:
    tag: int
    channels: int
    rate_hz: int
    bits: int


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

    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        found = next((name for magic, name in _OTHER_FORMATS.items() if data.startswith(magic)), "")
        raise InvalidArgument(f"not a WAV file{f' but {found}' if found else ''}; send a WAV file")
    form, body = _chunks(data)
    frames = len(body) // (form.channels * form.bits // 8)
    if frames == 0:
        raise InvalidArgument("the WAV file holds no sound: its data chunk is empty or missing")
    if frames > DURATION_S_MAX * form.rate_hz:
        raise InvalidArgument(
            f"the recording lasts {frames / form.rate_hz:.0f} s; "
            f"at most {DURATION_S_MAX:.0f} s are allowed"
        )
    wide = _samples(body[: frames * form.channels * form.bits // 8], form)
    mono = wide.reshape(frames, form.channels).mean(axis=1, dtype=np.float32)
    return Audio(np.clip(resample(mono, form.rate_hz), -1.0, 1.0))


def _chunks(data: bytes) -> tuple[_Format, bytes]:
    """Walk the RIFF chunks to the format and the samples; lengths are never trusted."""
    form: _Format | None = None
    position = 12
    for _ in range(_CHUNKS_MAX):
        if position + 8 > len(data):
            break
        name, size = struct.unpack_from("<4sI", data, position)
        content = data[position + 8 : position + 8 + size]
        if name == b"fmt ":
            form = _format(content)
        if name == b"data" and form is None:
            raise InvalidArgument("the WAV file has no format chunk before its data")
        if name == b"data" and form is not None:
            return form, content
        position += 8 + size + size % 2
    raise InvalidArgument("the WAV file holds no sound: its data chunk is empty or missing")


def _format(content: bytes) -> _Format:
    if len(content) < 16:  # noqa: PLR2004 - the fixed part of a format chunk
        raise InvalidArgument("the format chunk of the WAV file is too short")
    tag, channels, rate_hz, _, _, bits = struct.unpack_from("<HHIIHH", content)
    if tag == _EXTENSIBLE and len(content) >= 26:  # noqa: PLR2004 - where the real tag stands
        (tag,) = struct.unpack_from("<H", content, 24)
    if (tag, bits) not in {
        (_PCM, 8),
        (_PCM, 16),
        (_PCM, 24),
        (_PCM, 32),
        (_FLOAT, 32),
        (_FLOAT, 64),
    }:
        raise InvalidArgument(
            f"the WAV file is encoded in a way we do not read (format {tag}, {bits} bits); "
            "send PCM with 8, 16, 24 or 32 bits, or float"
        )
    if not 1 <= channels <= CHANNELS_MAX:
        raise InvalidArgument(f"the WAV file has {channels} channels; send 1 to {CHANNELS_MAX}")
    if not RATE_HZ_MIN <= rate_hz <= RATE_HZ_MAX:
        raise InvalidArgument(
            f"the WAV file claims {rate_hz} samples a second; send {RATE_HZ_MIN} to {RATE_HZ_MAX}"
        )
    return _Format(tag=tag, channels=channels, rate_hz=rate_hz, bits=bits)


def _samples(body: bytes, form: _Format) -> "NDArray[np.float32]":
    """Return float32 [frame * channel] in [-1, 1]."""
    import numpy as np

    if form.tag == _FLOAT:
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


def encode(pcm: bytes, rate_hz: int) -> bytes:
    """Return a mono 16-bit WAV file around little-endian PCM."""
    form = struct.pack("<HHIIHH", _PCM, 1, rate_hz, rate_hz * 2, 2, 16)
    head = struct.pack("<4sI4s4sI", b"RIFF", 36 + len(pcm), b"WAVE", b"fmt ", len(form))
    return head + form + struct.pack("<4sI", b"data", len(pcm)) + pcm
