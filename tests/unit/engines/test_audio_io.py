"""WAV files: what is read, and what is refused before a C library sees it."""

import struct
from pathlib import Path

import pytest

from schemas.errors import InvalidArgument
from schemas.wav import encode
from services.workers.engine import Request
from services.workers.engines import audio_io


np = pytest.importorskip("numpy")


def wav(
    body: bytes, *, tag: int = 1, channels: int = 1, rate_hz: int = 16_000, bits: int = 16
) -> bytes:
    """Return a WAV file with this format and body."""
    align = channels * bits // 8
    form = struct.pack("<HHIIHH", tag, channels, rate_hz, rate_hz * align, align, bits)
    chunks = b"fmt " + struct.pack("<I", len(form)) + form
    chunks += b"data" + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


@pytest.mark.parametrize(
    ("body", "tag", "bits"),
    [
        (bytes([64, 192]), 1, 8),
        (struct.pack("<2h", -16384, 16384), 1, 16),
        (b"\x00\x00\xc0\x00\x00\x40", 1, 24),
        (struct.pack("<2i", -(2**30), 2**30), 1, 32),
        (struct.pack("<2f", -0.5, 0.5), 3, 32),
        (struct.pack("<2d", -0.5, 0.5), 3, 64),
    ],
)
def test_every_width_reads_the_same(body: bytes, tag: int, bits: int) -> None:
    """PCM of 8 to 32 bits and float all mean the same sound."""
    assert [-0.5, 0.5] == audio_io.decode(wav(body, tag=tag, bits=bits)).samples.tolist()


def test_channels_are_averaged() -> None:
    """Stereo becomes mono."""
    body = struct.pack("<4h", 16384, 0, 0, -16384)
    assert [0.25, -0.25] == audio_io.decode(wav(body, channels=2)).samples.tolist()


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000])
def test_resampling_keeps_a_tone(rate_hz: int) -> None:
    """A 1 kHz tone is the same tone at 16 kHz, to one part in ten thousand."""
    tone = np.sin(2 * np.pi * 1000 * np.arange(rate_hz) / rate_hz).astype(np.float32) / 2
    found = audio_io.resample(tone, rate_hz)
    expected = np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000) / 2
    assert 16_000 == len(found)
    assert np.abs(found - expected)[400:-400].max() < 1e-4


def test_resampling_removes_what_would_alias() -> None:
    """A 9.5 kHz tone has no place at 16 kHz and vanishes."""
    tone = np.sin(2 * np.pi * 9500 * np.arange(48_000) / 48_000).astype(np.float32)
    assert np.abs(audio_io.resample(tone, 48_000))[400:-400].max() < 1e-3


def test_encode_and_decode() -> None:
    """What we write, we read."""
    pcm = struct.pack("<3h", 0, 8192, -8192)
    assert [0.0, 0.25, -0.25] == audio_io.decode(encode(pcm, 16_000)).samples.tolist()


@pytest.mark.parametrize(
    ("expected", "data"),
    [
        ("not a WAV file; send a WAV file", b"hello"),
        ("not a WAV file but Ogg", b"OggS" + bytes(40)),
        ("holds no sound", wav(b"")),
        ("holds no sound", wav(b"\x00")),
        (
            "format chunk of the WAV file is too short",
            wav(b"ab")[:16] + struct.pack("<I", 4) + bytes(60),
        ),
        ("format 85", wav(b"abcd", tag=85)),
        ("has 0 channels", wav(b"abcd", channels=0)),
        ("claims 1092676 samples", wav(b"abcd", rate_hz=1_092_676)),
        ("not numbers", wav(struct.pack("<f", float("nan")), tag=3, bits=32)),
        ("at most 600 s", wav(bytes(4_000 * 601), rate_hz=4_000, bits=8)),
    ],
)
def test_broken_files_are_refused(expected: str, data: bytes) -> None:
    """Each fault is named, and the input it came in."""
    with pytest.raises(InvalidArgument, match=expected) as caught:
        audio_io.from_request(Request(inputs={"audio": data}))
    assert "inputs.audio" == caught.value.field


@pytest.mark.parametrize("length", range(60))
def test_a_file_cut_anywhere_is_read_or_refused(length: int) -> None:
    """No cut makes the reader fail in another way."""
    whole = wav(struct.pack("<8h", *range(8)))
    try:
        count = len(audio_io.decode(whole[:length]).samples)
    except InvalidArgument:
        count = 0
    assert count <= 8


@pytest.mark.parametrize("name", ["awful", "bad", "evil", "null"])
def test_real_broken_files_are_refused(name: str, data_dir: Path) -> None:
    """The files CMU broke on purpose never reach the recogniser."""
    data = (data_dir / "speech-malformed" / f"{name}.wav").read_bytes()
    with pytest.raises(InvalidArgument):
        audio_io.decode(data)
