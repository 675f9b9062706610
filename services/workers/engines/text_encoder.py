"""The small text model we train ourselves (models/train.py): features in numpy, the rest in ONNX.

A text becomes hashed features: its words, pairs of neighbouring words, and the character 3- to
5-grams of each word, so that misheard and misspelt words still share most of theirs. The graph
takes their mean embedding through one hidden layer to a unit vector and to one score per intent.

Source: feature hashing, Weinberger et al. (ICML 2009); subword n-grams, Bojanowski et al. (2017).
"""

import json
import re
import zlib
from collections.abc import Sequence
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from schemas.errors import EngineFailed, ModelUnavailable
from services.workers.engine import Engine
from services.workers.engines import fields


if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

WEIGHTS = "text_small.onnx"
BUCKETS = 16_384
CHARS_MAX = 2_000
FEATURES_MAX = 2_048
BATCH_MAX = 64

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")


class TextEncoder:
    """An ONNX session over the small text model."""

    def __init__(self, path: Path | None = None) -> None:
        """Load the model at `path`, or the one that ships with clawdbot.

        Raises:
            ModelUnavailable: onnxruntime or the weights are not on this machine.
        """
        try:
            import onnxruntime
        except ImportError as error:
            raise ModelUnavailable("the Python package onnxruntime is not installed") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        try:
            self._session: Any = onnxruntime.InferenceSession(
                weights(path), options, providers=["CPUExecutionProvider"]
            )
        except OSError as error:
            raise ModelUnavailable("the weights of the small text model are absent") from error
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.labels: tuple[str, ...] = tuple(json.loads(metadata["labels"]))

    def run(self, texts: Sequence[str]) -> "tuple[NDArray[np.float32], NDArray[np.float32]]":
        """Encode texts.

        Returns:
            Unit vectors, float32 [text, dimension], and probabilities, float32 [text, label].

        Raises:
            EngineFailed: The runtime refused the batch.
        """
        import numpy as np

        vectors, chances = [], []
        for first in range(0, len(texts), BATCH_MAX):
            ids = pad([features(text) for text in texts[first : first + BATCH_MAX]])
            try:
                vector, chance = self._session.run(["embedding", "probabilities"], {"ids": ids})
            except Exception as error:
                raise EngineFailed("the text model could not encode this text") from error
            vectors.append(vector)
            chances.append(chance)
        return np.concatenate(vectors), np.concatenate(chances)


def weights(path: Path | None) -> bytes:
    """Return the bytes of the model file."""
    if path is not None:
        return path.read_bytes()
    shipped = resources.files("services.workers")
    return shipped.joinpath("weights").joinpath(WEIGHTS).read_bytes()


def features(text: str) -> list[int]:
    """Return the feature ids of a text, 1 to `BUCKETS`; 0 is padding, never a feature."""
    words = _WORD.findall(text[:CHARS_MAX].lower())
    found = [f"w {word}" for word in words]
    found += [f"p {first} {second}" for first, second in pairwise(words)]
    for word in words:
        marked = f"<{word[:32]}>"
        for size in (3, 4, 5):
            found += [marked[at : at + size] for at in range(len(marked) - size + 1)]
    return [1 + zlib.crc32(item.encode()) % BUCKETS for item in found[:FEATURES_MAX]]


def pad(rows: Sequence[Sequence[int]]) -> "NDArray[np.int64]":
    """Return int64 [row, feature], each row filled up with zeros."""
    import numpy as np

    width = max(1, *(len(row) for row in rows)) if rows else 1
    ids = np.zeros((len(rows), width), np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
    return ids


class EncoderEngine(Engine):
    """An engine that stands on the small text model."""

    encoder: Any = None

    @override
    def missing(self) -> str | None:
        return fields.missing_package("onnxruntime", "numpy")

    @override
    def load(self) -> None:
        self.encoder = TextEncoder()

    @override
    def close(self) -> None:
        self.encoder = None
