"""The contract of what is converted: its tensors, its answers, and how it becomes an ONNX file."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.errors import FailedPrecondition


if TYPE_CHECKING:
    from numpy.typing import NDArray

Feeds = Mapping[str, "NDArray[Any]"]
Dimension = int | str
"""A size; or the name of a size that each request chooses."""


@dataclass(frozen=True)
class TensorInfo:
    """An input or output as the model names it."""

    name: str
    datatype: str
    """Of the Open Inference Protocol."""
    shape: tuple[Dimension, ...]

    @property
    def port_name(self) -> str:
        """What workflows call it."""
        plain = re.sub(r"[^a-z0-9_]", "_", self.name.lower())[:64]
        return plain if plain[:1].isalpha() else f"t_{plain}"[:64]


@dataclass(frozen=True)
class VocabularyFile:
    """The tokens of a model, a line each, or its `tokenizer.json`; see `catalogue.Vocabulary`."""

    data: bytes
    lower_case: bool
    tokens_max: int
    is_whole: bool = False
    """Whether it is a `tokenizer.json`."""


class Source(ABC):
    """A model that can be run here, and written as ONNX."""

    name: str
    """A file's or folder's name, or `module:function`."""
    size_bytes: int = 0
    """Of its weights."""
    sha256: str | None = None
    packages: tuple[str, ...] = ()
    """Libraries whose version matters."""
    inputs: Sequence[TensorInfo] = ()
    signature: str = ""
    """Of the library, that it keeps."""
    vocabulary: VocabularyFile | None = None

    @abstractmethod
    def run(self, feeds: Feeds) -> dict[str, "NDArray[Any]"]:
        """Compute every output, by the names the ONNX file will have."""

    @abstractmethod
    def write(self, path: Path, opset: int) -> None:
        """Write an ONNX file that keeps its weights itself.

        Raises:
            FailedPrecondition: It has no form in ONNX of this opset.
        """

    def examples(self) -> Feeds | None:
        """Return inputs that came with the model."""
        return None


def need(extra: str, *packages: str) -> None:
    """Refuse to go on without packages.

    Raises:
        FailedPrecondition: Names them, and the extra that has them.
    """
    absent = [package for package in packages if find_spec(package) is None]
    if absent:
        raise FailedPrecondition(
            f"not installed: {', '.join(absent)}; pip install 'clawdbot[{extra}]'"
        )


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of the packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue  # under another name, such as onnxruntime-gpu
    return found
