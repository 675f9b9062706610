"""Speaks text with eSpeak NG (library and voices come inside `espeakng-loader`).

The library keeps its state in globals, so one process loads it once and one lock guards it.

Source: espeak-ng/speak_lib.h of eSpeak NG 1.52.
"""

import ctypes
import re
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from typing_extensions import override

from schemas import wav
from schemas.errors import EngineFailed, InvalidArgument, ModelUnavailable
from schemas.values import Binary, Value
from services.workers.engine import Engine, Request
from services.workers.engines import fields


TEXT_CHARS_MAX = 5_000
AUDIO_S_MAX = 600
VOICE = "en-us"
SPEED_WPM = 165
PITCH = 50

_SYNCHRONOUS, _DO_NOT_EXIT, _BY_CHARACTER, _UTF8 = 2, 0x8000, 1, 1
_RATE, _PITCH = 1, 3
_VOICE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9+_-]{0,39}")
_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)
_lock = threading.Lock()


class EspeakEngine(Engine):
    """Output `audio` is a WAV file of input `text`; `duration_s` its length.

    Params: `voice` (en-us, de, fr, en+f3 ...), `speed_wpm` 80 to 450, `pitch` 0 to 99.
    """

    @override
    def missing(self) -> str | None:
        return fields.missing_package("espeakng_loader")

    @override
    def load(self) -> None:
        with _lock:
            _library()

    @override
    def infer(self, batch: Sequence[Request]) -> list[Mapping[str, Value]]:
        return [_speak(request) for request in batch]


def _speak(request: Request) -> Mapping[str, Value]:
    text = fields.text(request, chars_max=TEXT_CHARS_MAX).replace("\0", " ").strip()
    if not text:
        raise InvalidArgument("'text' is empty: there is nothing to say", field="inputs.text")
    voice = request.params.get("voice", VOICE)
    if not isinstance(voice, str) or not _VOICE_NAME.fullmatch(voice):
        raise InvalidArgument("'voice' is a name such as en-us or de", field="params.voice")
    speed = fields.number(request, "speed_wpm", default=SPEED_WPM, low=80, high=450)
    pitch = fields.number(request, "pitch", default=PITCH, low=0, high=99)
    with _lock:
        library, rate_hz = _library()
        if library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise InvalidArgument(f"there is no voice '{voice}'", field="params.voice")
        library.espeak_SetParameter(_RATE, int(speed), 0)
        library.espeak_SetParameter(_PITCH, int(pitch), 0)
        pcm = _synthesize(library, text, AUDIO_S_MAX * rate_hz * 2)
    return {
        "audio": Binary(media_type="audio/wav", data=wav.encode(pcm, rate_hz)),
        "duration_s": round(len(pcm) / 2 / rate_hz, 3),
    }


def _synthesize(library: Any, text: str, bytes_max: int) -> bytes:
    """Return 16-bit PCM; the caller holds the lock."""
    pcm = bytearray()

    def collect(samples: Any, count: int, _events: Any) -> int:
        if samples and count > 0:
            pcm.extend(ctypes.string_at(samples, count * 2))
        return int(len(pcm) > bytes_max)

    callback = _CALLBACK(collect)
    library.espeak_SetSynthCallback(callback)
    encoded = text.encode("utf-8", errors="replace") + b"\0"
    status = library.espeak_Synth(encoded, len(encoded), 0, _BY_CHARACTER, 0, _UTF8, None, None)
    library.espeak_Synchronize()
    if status != 0:
        raise EngineFailed("the speech synthesiser refused this text", status=status)
    if len(pcm) > bytes_max:
        raise InvalidArgument(
            f"the speech would last longer than {AUDIO_S_MAX} s", field="inputs.text"
        )
    return bytes(pcm)


@cache
def _library() -> tuple[Any, int]:
    """Load and start the library once; returns it and its sample rate in hertz."""
    try:
        import espeakng_loader
    except ImportError as error:
        raise ModelUnavailable("the Python package espeakng-loader is not installed") from error
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    library.espeak_Synth.argtypes = [
        ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int,
        ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p,
    ]  # fmt: skip
    data_path = espeakng_loader.get_data_path().encode()
    rate_hz = library.espeak_Initialize(_SYNCHRONOUS, 0, data_path, _DO_NOT_EXIT)
    if rate_hz <= 0:
        raise ModelUnavailable("the speech synthesiser did not start: its data is unreadable")
    return library, int(rate_hz)
