"""Word error rate of pocketsphinx over a folder of recordings with transcripts.

    python -m bench.wer ../shared/data/speech

Every recording is heard four times: open and with a grammar of all the transcripts, each with and
without voice activity detection. A recording without a `.txt` beside it takes the transcript below.
"""

import argparse
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from schemas import catalogue
from schemas.values import Binary
from services.workers.engine import Engine, Request
from services.workers.engines import engine_class


TRANSCRIPTS = {
    "goforward": "go forward ten meters",
    "something": "go somewhere and do something",
}
_SPELLINGS = {"mr": "mister", "mrs": "missus"}


@dataclass(frozen=True)
class Score:
    """One recording, one setting."""

    name: str
    setting: str
    errors: int
    words: int
    seconds: float
    audio_s: float
    heard: str


def normalize(text: str) -> list[str]:
    """Return lower-case words, abbreviations spelt out."""
    words = re.findall(r"[a-z']+", text.lower())
    return [_SPELLINGS.get(word, word) for word in words]


def errors(expected: Sequence[str], heard: Sequence[str]) -> int:
    """Return the fewest words to insert, delete or replace (Levenshtein, 1966)."""
    row = list(range(len(heard) + 1))
    for index, word in enumerate(expected, start=1):
        previous, row = row, [index]
        for column, other in enumerate(heard, start=1):
            replaced = previous[column - 1] + (word != other)
            row.append(min(replaced, previous[column] + 1, row[-1] + 1))
    return row[-1]


def transcript(recording: Path) -> str:
    """Return what is said in a recording."""
    beside = recording.with_suffix(".txt")
    if beside.is_file():
        return beside.read_text(encoding="utf-8").strip()
    return TRANSCRIPTS[recording.stem]


def measure(engine: Engine, folder: Path) -> list[Score]:
    """Hear every recording in every setting."""
    recordings = sorted(folder.glob("*.wav"))
    grammar = [" ".join(normalize(transcript(recording))) for recording in recordings]
    scores = []
    for setting, chosen in (("open", None), ("grammar", grammar)):
        for vad in (False, True):
            params = {"vad": vad, **({"grammar": chosen} if chosen else {})}
            for recording in recordings:
                audio = Binary(media_type="audio/wav", data=recording.read_bytes())
                started = time.perf_counter()
                (outputs,) = engine.infer([Request(inputs={"audio": audio}, params=params)])
                expected = normalize(transcript(recording))
                scores.append(
                    Score(
                        name=recording.stem,
                        setting=f"{setting}{' + vad' if vad else ''}",
                        errors=errors(expected, normalize(outputs["text"])),
                        words=len(expected),
                        seconds=time.perf_counter() - started,
                        audio_s=outputs["duration_s"],
                        heard=outputs["text"],
                    )
                )
    return scores


def table(scores: Sequence[Score]) -> str:
    """Return a Markdown table, one line a setting, and what was heard wrong."""
    lines = ["| setting | words | errors | WER | ms per second of audio |", "|---|---|---|---|---|"]
    for setting in dict.fromkeys(score.setting for score in scores):
        group = [score for score in scores if score.setting == setting]
        wrong, words = sum(s.errors for s in group), sum(s.words for s in group)
        pace = 1000 * sum(s.seconds for s in group) / sum(s.audio_s for s in group)
        lines.append(f"| {setting} | {words} | {wrong} | {wrong / words:.3f} | {pace:.0f} |")
    lines += [""] + [
        f"- {score.name}, {score.setting}, {score.errors} of {score.words}: {score.heard}"
        for score in scores
        if score.errors
    ]
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="recordings (.wav) with transcripts (.txt)")
    folder = parser.parse_args().folder
    spec = catalogue.load().model("pocketsphinx")
    engine = engine_class(spec.engine)(spec, Path())
    assert isinstance(engine, Engine)
    engine.load()
    print(table(measure(engine, folder)))


if __name__ == "__main__":
    main()
