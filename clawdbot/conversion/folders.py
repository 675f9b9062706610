"""Writes a model's folder: `model.onnx`, `model.yaml`, `parity.json`; whole, or not at all."""

import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from clawdbot.conversion.source import Source, TensorInfo
from schemas.catalogue import Modality, ModelSpec, Port
from schemas.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from schemas.parity import Report
from schemas.workflow import invalid


MODEL, SPEC, PARITY = "model.onnx", "model.yaml", "parity.json"
VOCABULARY = "vocab.txt"
TOKENIZER = "tokenizer.json"
MODEL_BYTES_MAX = 2 * 1024 * 1024 * 1024
"""A protobuf holds no more; a model's weights are in its file."""


@contextmanager
def new_folder(target: Path, *, force: bool) -> Iterator[Path]:
    """Yield a folder that becomes `target` when all went well, and is gone when not.

    Raises:
        AlreadyExists: There is something, and `force` does not allow to replace it.
    """
    if target.exists() and not force:
        raise AlreadyExists(f"{target} exists; --force replaces it, or give another --output")
    if target.exists() and not (target / SPEC).is_file() and any(target.iterdir()):
        raise InvalidArgument(f"{target} is no folder of a model; it is not replaced")
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield draft
        draft.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def digest(path: Path) -> tuple[str, int]:
    """Return SHA-256 and size of a model's file.

    Raises:
        FailedPrecondition: It is larger than a model's file can be.
    """
    size = path.stat().st_size
    if size > MODEL_BYTES_MAX:
        raise FailedPrecondition(f"the ONNX file has {size} bytes, more than one file can have")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), size


def spec_of(
    inputs: Sequence[TensorInfo],
    outputs: Sequence[TensorInfo],
    report: Report | None,
    *,
    modality: Modality,
    max_batch_size: int,
) -> ModelSpec:
    """Return the catalogue entry of a model in this folder."""
    document = {
        "modality": modality,
        "engine": "onnx",
        "source": MODEL,
        "accepts": [],
        "inputs": [_port(item) for item in inputs],
        "outputs": [_port(item) for item in outputs],
        "max_batch_size": max_batch_size,
        "parity": None if report is None else report.parity.model_dump(),
    }
    return ModelSpec.model_validate(document)


def with_signature(folder: Path, spec: ModelSpec, source: Source) -> ModelSpec:
    """Return an entry with the signature that a source keeps, and write its vocabulary.

    Raises:
        InvalidArgument: The model does not keep it after all.
    """
    document = spec.model_dump() | {"signature": source.signature}
    if source.vocabulary is not None and source.signature:
        data = source.vocabulary.data
        name = TOKENIZER if source.vocabulary.is_whole else VOCABULARY
        (folder / name).write_bytes(data)
        document["vocabulary"] = {
            "path": name,
            "sha256": hashlib.sha256(data).hexdigest(),
            "lower_case": source.vocabulary.lower_case,
            "tokens_max": source.vocabulary.tokens_max,
        }
    try:
        return ModelSpec.model_validate(document)
    except ValidationError as error:
        raise invalid(error) from error


def write(folder: Path, spec: ModelSpec, report: Report) -> None:
    """Write what stands beside the model's file."""
    document = spec.model_dump(mode="json", exclude_defaults=True)
    document["accepts"] = list(spec.accepts or ())
    for side, ports in (("inputs", spec.inputs), ("outputs", spec.outputs)):
        document[side] = [_written(port) for port in ports]
    document["parity"] = report.parity.model_dump(mode="json", exclude_none=True)
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    (folder / SPEC).write_text(text, encoding="utf-8")
    (folder / PARITY).write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")


def _port(item: TensorInfo) -> dict[str, Any]:
    return {
        "name": item.port_name,
        "tensor": item.name,
        "kind": "tensor",
        "datatype": item.datatype,
        "shape": [size if isinstance(size, int) else -1 for size in item.shape],
    }


def _written(port: Port) -> dict[str, Any]:
    """Return a port as a reader wants it: what it is, and nothing that goes without saying."""
    told = {"name", "tensor", "kind", "datatype", "shape"}
    whole = port.model_dump(mode="json", include=told)
    more = {"content", "vocabulary"}  # the signature and the model say them
    rest = port.model_dump(mode="json", exclude_defaults=True, exclude=told | more)
    return whole | rest
