"""Hearing and speaking: pocketsphinx, silero, espeak."""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from schemas import wav
from schemas.errors import InvalidArgument
from schemas.values import Binary, Value
from services.workers.engines import audio_io


Infer = Callable[..., Mapping[str, Value]]
COMMANDS = ["go forward ten meters", "turn on the lights", "what time is it"]


def silence(seconds: float) -> Binary:
    """Return a WAV file of silence."""
    return Binary(media_type="audio/wav", data=wav.encode(bytes(int(32_000 * seconds)), 16_000))


def recording(data_dir: Path, name: str) -> Binary:
    """Return one of the real recordings."""
    data = (data_dir / "speech" / f"{name}.wav").read_bytes()
    return Binary(media_type="audio/wav", data=data)


@pytest.mark.parametrize("sentence", COMMANDS)
def test_what_espeak_says_pocketsphinx_hears(
    espeak: Infer, pocketsphinx: Infer, sentence: str
) -> None:
    """Synthetic speech comes back as text, given a grammar."""
    spoken = espeak({"text": sentence}, speed_wpm=130)
    assert sentence == pocketsphinx({"audio": spoken["audio"]}, grammar=COMMANDS)["text"]


def test_open_speech(pocketsphinx: Infer, data_dir: Path) -> None:
    """A real recording is understood without a grammar, with its length."""
    expected = {"text": "go forward ten meters", "language": "en", "duration_s": 2.786}
    assert expected == pocketsphinx({"audio": recording(data_dir, "goforward")})


def test_jsgf(pocketsphinx: Infer, data_dir: Path) -> None:
    """A grammar may be JSGF text."""
    grammar = (
        "#JSGF V1.0; grammar move; <count> = five | ten; "
        "public <command> = go (forward | back) <count> meters;"
    )
    heard = pocketsphinx({"audio": recording(data_dir, "goforward")}, grammar=grammar)
    assert "go forward ten meters" == heard["text"]


def test_silence_is_no_text(pocketsphinx: Infer) -> None:
    """Nobody speaks, so nothing was said."""
    assert "" == pocketsphinx({"audio": silence(1.0)})["text"]


@pytest.mark.parametrize(
    ("field", "grammar"),
    [
        ("params.grammar", 7),
        ("params.grammar", []),
        ("params.grammar", "turn left"),
        ("params.grammar", "#JSGF V1.0; grammar g; import <other.*>; public <a> = go;"),
        ("params.grammar", "#JSGF V1.0; grammar g; public <a> = (((go;"),
        ("params.grammar", ["qwertz"]),
        ("params.grammar[1]", ["go", "go 10 meters"]),
        ("params.grammar[0]", [None]),
    ],
)
def test_bad_grammars_are_refused(pocketsphinx: Infer, field: str, grammar: Any) -> None:
    """A grammar the recogniser cannot use is the caller's fault, and named."""
    with pytest.raises(InvalidArgument) as caught:
        pocketsphinx({"audio": silence(0.1)}, grammar=grammar)
    assert field == caught.value.field


def test_many_grammars(pocketsphinx: Infer) -> None:
    """Old grammars make room for new ones."""
    for word in ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"):
        assert pocketsphinx({"audio": silence(0.2)}, grammar=[f"go {word}"]) is not None


@pytest.mark.parametrize("name", ["awful", "bad", "evil", "null"])
def test_broken_recordings_are_refused(pocketsphinx: Infer, data_dir: Path, name: str) -> None:
    """A broken file ends in an error that names the input."""
    data = (data_dir / "speech-malformed" / f"{name}.wav").read_bytes()
    with pytest.raises(InvalidArgument) as caught:
        pocketsphinx({"audio": Binary(media_type="audio/wav", data=data)})
    assert "inputs.audio" == caught.value.field


def test_silero_finds_nothing_in_silence(silero: Infer) -> None:
    """Silence holds no speech."""
    assert {"segments": [], "speech": False, "duration_s": 1.0} == silero({"audio": silence(1.0)})


def test_silero_finds_the_sentence(silero: Infer, data_dir: Path) -> None:
    """One sentence is one segment, inside the recording."""
    found = silero({"audio": recording(data_dir, "goforward")})
    (segment,) = found["segments"]
    assert found["speech"] is True
    assert 0 < segment["start_s"] < 0.6
    assert 2.0 < segment["end_s"] <= found["duration_s"]


def test_espeak_gives_a_wav_file(espeak: Infer) -> None:
    """The audio is a WAV file of the length it claims."""
    spoken = espeak({"text": "Hello world"})
    audio = audio_io.decode(spoken["audio"].data)
    assert "audio/wav" == spoken["audio"].media_type
    assert pytest.approx(spoken["duration_s"], abs=0.01) == audio.duration_s
    assert abs(audio.samples).max() > 0.1


def test_espeak_speed(espeak: Infer) -> None:
    """Faster speech is shorter."""
    slow, fast = (espeak({"text": "one two three"}, speed_wpm=wpm) for wpm in (100, 300))
    assert fast["duration_s"] < slow["duration_s"]


@pytest.mark.parametrize(
    ("field", "text", "params"),
    [
        ("inputs.text", " ", {}),
        ("inputs.text", "x" * 5001, {}),
        ("params.voice", "a", {"voice": "nobody"}),
        ("params.voice", "a", {"voice": "../en"}),
        ("params.speed_wpm", "a", {"speed_wpm": 1000}),
        ("params.pitch", "a", {"pitch": "high"}),
    ],
)
def test_espeak_refuses(espeak: Infer, field: str, text: str, params: dict[str, Any]) -> None:
    """Text and parameters have limits, and the error names them."""
    with pytest.raises(InvalidArgument) as caught:
        espeak({"text": text}, **params)
    assert field == caught.value.field


def test_espeak_is_one_at_a_time(espeak: Infer) -> None:
    """Threads that speak at once do not mix their voices."""
    alone = espeak({"text": "one two three four"})["duration_s"]
    lengths: list[float] = []
    threads = [
        threading.Thread(
            target=lambda: lengths.append(espeak({"text": "one two three four"})["duration_s"])
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [pytest.approx(alone, abs=0.01)] * 4 == lengths


def test_others_get_a_turn_while_it_hears(espeak: Infer, pocketsphinx: Infer) -> None:
    """Decoding lets go of Python's lock, or a worker could not say that it is alive."""
    spoken = espeak({"text": "what is the time now please tell me what time it is"})
    done = threading.Event()
    turns: list[None] = []

    def take_turns() -> None:
        while not done.wait(0.001):
            turns.append(None)

    other = threading.Thread(target=take_turns)
    other.start()
    try:
        pocketsphinx({"audio": spoken["audio"]}, vad=False)
    finally:
        done.set()
        other.join()
    pieces = 10 * spoken["duration_s"]
    assert len(turns) > pieces / 2


def test_a_long_recording_is_heard_to_its_end(pocketsphinx: Infer, data_dir: Path) -> None:
    """Beyond half a minute it is cut where nobody speaks, and nothing is lost."""
    _, sentence = wav.parse(recording(data_dir, "goforward").data)
    pause = bytes(32_000 * 28)
    audio = Binary(media_type="audio/wav", data=wav.encode(sentence + pause + sentence, 16_000))
    heard = pocketsphinx({"audio": audio})
    assert "go forward ten meters go forward ten meters" == heard["text"]
    assert 33.572 == heard["duration_s"]
