"""The outside of a WAV file: what one claims, checked before anything believes it; and a new one.

8 to 32 bit PCM or float, up to 8 channels, 4 to 192 kHz, at most ten minutes.

Source: "Multimedia Programming Interface and Data Specifications 1.0" (1991) for RIFF/WAVE;
WAVE_FORMAT_EXTENSIBLE from Microsoft's mmreg.h.
"""

import struct
from dataclasses import dataclass

from schemas.errors import InvalidArgument


RATE_HZ_MIN = 4_000
RATE_HZ_MAX = 192_000
CHANNELS_MAX = 8
DURATION_S_MAX = 600.0
CHUNKS_MAX = 1024
PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
_OTHER_FORMATS = {
    b"OggS": "Ogg",
    b"fLaC": "FLAC",
    b"ID3": "MP3",
    b"\xff\xfb": "MP3",
    b"FORM": "AIFF",
    b"\x1a\x45\xdf\xa3": "WebM",
}


@dataclass(frozen=True)
class Format:
    """What a format chunk says."""

    tag: int
    channels: int
    rate_hz: int
    bits: int


def parse(data: bytes) -> tuple[Format, bytes]:
    """Return format and samples of a WAV file, the samples cut to whole frames.

    Raises:
        InvalidArgument: What is wrong with the file.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        found = next((name for magic, name in _OTHER_FORMATS.items() if data.startswith(magic)), "")
        raise InvalidArgument(f"not a WAV file{f' but {found}' if found else ''}; send a WAV file")
    form, body = _chunks(data)
    frame_bytes = form.channels * form.bits // 8
    frames = len(body) // frame_bytes
    if frames == 0:
        raise InvalidArgument("the WAV file holds no sound: its data chunk is empty or missing")
    if frames > DURATION_S_MAX * form.rate_hz:
        raise InvalidArgument(
            f"the recording lasts {frames / form.rate_hz:.0f} s; "
            f"at most {DURATION_S_MAX:.0f} s are allowed"
        )
    return form, body[: frames * frame_bytes]


def _chunks(data: bytes) -> tuple[Format, bytes]:
    """Walk the RIFF chunks to the format and the samples; lengths are never trusted."""
    form: Format | None = None
    position = 12
    for _ in range(CHUNKS_MAX):
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


def _format(content: bytes) -> Format:
    if len(content) < 16:  # noqa: PLR2004 - the fixed part of a format chunk
        raise InvalidArgument("the format chunk of the WAV file is too short")
    tag, channels, rate_hz, _, _, bits = struct.unpack_from("<HHIIHH", content)
    if tag == EXTENSIBLE and len(content) >= 26:  # noqa: PLR2004 - where the real tag stands
        (tag,) = struct.unpack_from("<H", content, 24)
    if (tag, bits) not in {
        (PCM, 8),
        (PCM, 16),
        (PCM, 24),
        (PCM, 32),
        (FLOAT, 32),
        (FLOAT, 64),
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
    return Format(tag=tag, channels=channels, rate_hz=rate_hz, bits=bits)


def encode(pcm: bytes, rate_hz: int) -> bytes:
    """Return a mono 16-bit WAV file around little-endian PCM."""
    form = struct.pack("<HHIIHH", PCM, 1, rate_hz, rate_hz * 2, 2, 16)
    head = struct.pack("<4sI4s4sI", b"RIFF", 36 + len(pcm), b"WAVE", b"fmt ", len(form))
    return head + form + struct.pack("<4sI", b"data", len(pcm)) + pcm
