"""A model as a folder, or a file: what is pushed, read without following a link."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from typing_extensions import override

from events.model_folders import open_plain, plain_files, signature
from schemas.artefacts import HEAD_BYTES, ONNX, check_head, check_paths
from schemas.catalogue import Modality, ModelSpec
from schemas.errors import InvalidArgument
from schemas.pushes import spec_of_onnx
from schemas.repository import PART_BYTES_MAX, ModelFile, check_name
from schemas.workflow import invalid


SPEC = "model.yaml"
YAML_BYTES_MAX = 64 * 1024


@dataclass(frozen=True)
class Hints:
    """What is said of a model that has no `model.yaml`."""

    modality: Modality = "text"
    max_batch_size: int = 0
    """Rows of one call; 0 where requests are not to be computed together."""


@dataclass(frozen=True)
class Package:
    """A model that can be pushed.

    Args:
        name: Of the model.
        root: The folder.
        paths: Its files.
        spec: As in the catalogue.
    """

    name: str
    root: Path
    paths: tuple[str, ...]
    spec: ModelSpec

    def parts(self, path: str) -> Iterator[bytes]:
        """Yield the parts of a file.

        Raises:
            InvalidArgument: It is a link, or nothing that a model is made of.
            OSError: It cannot be read.
        """
        with open_plain(self.root, path) as file:
            while data := file.read(PART_BYTES_MAX):
                yield data


class FileDigest:
    """Adds up the parts of a file as they are stored."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._parts: list[str] = []
        self._digest, self._size = hashlib.sha256(), 0

    def add(self, data: bytes, sha256: str) -> None:
        """Add a part that is stored under a digest."""
        self._parts.append(sha256)
        self._digest.update(data)
        self._size += len(data)

    def file(self) -> ModelFile:
        """Return the file."""
        return ModelFile(
            path=self._path,
            size_bytes=self._size,
            sha256=self._digest.hexdigest(),
            parts=tuple(self._parts),
        )


def packages(path: Path, name: str = "", hints: Hints | None = None) -> list[Package]:
    """Return the models in a folder, or the one in a file.

    A folder is a model if it has a `model.yaml`, or one `.onnx` file; its name is the folder's. One
    whose folders are numbers is a model with so many versions, in this order. Any other is a folder
    of models.

    Args:
        path: The folder, or the `.onnx` file.
        name: Of the model, where it is to be another.
        hints: Of files that say not enough of themselves.

    Raises:
        InvalidArgument: There is none, or one cannot be pushed; says why.
    """
    wanted = hints or Hints()
    if path.is_file():
        return [_file(path.parent, path.name, name or path.stem, wanted)]
    root = path.resolve()
    found = plain_files(root)
    top = sorted({item.partition("/")[0] for item in found if "/" in item})
    if SPEC in found:
        return [_folder(root, name or root.name, found)]
    files = [item for item in found if item.endswith(ONNX)]
    if len(files) == 1 and "/" not in files[0]:
        return [_file(root, files[0], name or root.name, wanted)]
    if not top:
        raise InvalidArgument(f"'{root.name}' has neither a {SPEC} nor one {ONNX} file")
    if all(folder.isdecimal() for folder in top):
        versions = sorted(top, key=int)
        return [one for at in versions for one in packages(root / at, name or root.name, wanted)]
    if name:
        raise InvalidArgument(f"'{root.name}' has several models; they have their own names")
    return [one for folder in top for one in packages(root / folder, "", wanted)]


def _file(root: Path, file: str, name: str, hints: Hints) -> Package:
    """Return a package of one ONNX file, which says itself what it takes and gives."""
    if not file.endswith(ONNX):
        raise InvalidArgument(f"'{file}' is no {ONNX} file; push its folder, with a {SPEC}")
    found = signature(root, file)
    spec = spec_of_onnx(found, file, modality=hints.modality, max_batch_size=hints.max_batch_size)
    return Package(check_name(name), root, (file,), spec)


def _folder(root: Path, name: str, found: list[str]) -> Package:
    with open_plain(root, SPEC) as file:
        text = file.read(YAML_BYTES_MAX + 1)
    if len(text) > YAML_BYTES_MAX:
        raise InvalidArgument(f"{SPEC} has at most {YAML_BYTES_MAX} bytes")
    paths = tuple(path for path in found if path != SPEC)
    check_paths(paths)
    for path in paths:
        with open_plain(root, path) as file:
            check_head(path, file.read(HEAD_BYTES))
    return Package(check_name(name), root, paths, read_spec(text))


def read_spec(text: bytes) -> ModelSpec:
    """Read a `model.yaml`.

    Raises:
        InvalidArgument: It is no YAML, has tags or aliases, or is no spec; names the field.
    """
    try:
        document = yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader, and stricter
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidArgument(f"{SPEC} is not plain YAML: {_brief(error)}") from error
    try:
        return ModelSpec.model_validate(document)
    except ValidationError as error:
        wrong = invalid(error)
        raise InvalidArgument(f"{SPEC}: {wrong.message}", field=wrong.field) from error


class _Loader(yaml.SafeLoader):
    """YAML without aliases: ten of them, one in the other, are a billion values."""

    @override
    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(problem="write the value out, aliases are not read")
        return super().compose_node(parent, index)


def _brief(error: Exception) -> str:
    found = getattr(error, "problem", None)
    return str(found) if found else type(error).__name__
