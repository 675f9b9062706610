"""Whether a spec and its files may become a version of a model. Pure."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from pydantic import ValidationError

from schemas.artefacts import PROGRAM
from schemas.catalogue import Modality, ModelSpec, Port
from schemas.errors import InvalidArgument
from schemas.onnx_file import OnnxSummary, OnnxTensor
from schemas.repository import ModelFile
from schemas.workflow import invalid


PORT_CHARS_MAX = 64
SPEC_BYTES_MAX = 64 * 1024

TORCH = "torch"
UNPUSHED = {"http", "template"}
"""Engines that are parts of clawdbot itself."""
ONNX_PARAMS = {"providers", "strict_provider", "threads"}
"""What the spec of a pushed ONNX model may set; the rest names files, and is the operator's."""


def digest_of(spec: ModelSpec, files: Sequence[ModelFile]) -> str:
    """Return what names a version's content: SHA-256 over its spec and its files' digests."""
    plain = spec.model_copy(update={"version": "1"})
    lines = [f"{item.path} {item.size_bytes} {item.sha256}" for item in files]
    document = plain.model_dump_json(exclude_defaults=True)  # later defaults change nothing
    text = "\n".join([document, *sorted(lines)])
    return hashlib.sha256(text.encode()).hexdigest()


def check_spec(spec: ModelSpec, paths: Sequence[str]) -> None:
    """Refuse a spec that a pushed model may not have.

    Raises:
        InvalidArgument: Names the field.
    """
    if len(spec.model_dump_json()) > SPEC_BYTES_MAX:
        raise InvalidArgument(f"a spec has at most {SPEC_BYTES_MAX} bytes", field="spec")
    if spec.engine in UNPUSHED:
        raise InvalidArgument(
            f"the engine {spec.engine} has no models of yours", field="spec.engine"
        )
    if spec.fallback is not None:
        raise InvalidArgument("a pushed model has no stand-in", field="spec.fallback")
    beyond = sorted(set(spec.params) - ONNX_PARAMS) if spec.engine == "onnx" else []
    if beyond:
        raise InvalidArgument(
            f"the catalogue's operator sets '{beyond[0]}', a pushed model does not",
            field=f"spec.params.{beyond[0]}",
        )
    if spec.engine != TORCH and any(path.lower().endswith(PROGRAM) for path in paths):
        raise InvalidArgument(f"only the engine {TORCH} reads {PROGRAM} files", field="files")
    _check_source(spec.source, paths)


def _check_source(source: str | None, paths: Sequence[str]) -> None:
    if not paths:
        if source:
            raise InvalidArgument("there are no files, so there is no source", field="spec.source")
        return
    inside = {path[:at] for path in paths for at in range(len(path)) if path[at] == "/"}
    if source not in {*paths, *inside, "."}:
        raise InvalidArgument(
            "the source is one of the files, a folder of theirs, or '.' for all",
            field="spec.source",
        )


def vocabulary_of(spec: ModelSpec, files: Sequence[ModelFile]) -> ModelFile | None:
    """Return the file that a spec's vocabulary is; None where it has none.

    Raises:
        InvalidArgument: It is none of the files, or another one than the spec says.
    """
    if spec.vocabulary is None:
        return None
    path = str(PurePosixPath(spec.source or "").parent / spec.vocabulary.path)
    for file in files:
        if file.path == path and file.sha256 == spec.vocabulary.sha256:
            return file
    raise InvalidArgument(
        f"none of the files is '{path}' with this digest: it lies beside the source",
        field="spec.vocabulary",
    )


def same_shape(before: ModelSpec, after: ModelSpec) -> bool:
    """Tell whether what binds to one version binds to the other."""

    def ports(items: tuple[Port, ...]) -> list[tuple[object, ...]]:
        return [
            (port.name, port.kind, port.required, port.datatype, len(port.shape), port.content)
            for port in items
        ]

    return (
        before.modality == after.modality
        and ports(before.inputs) == ports(after.inputs)
        and ports(before.outputs) == ports(after.outputs)
    )


def check_signature(spec: ModelSpec, found: OnnxSummary) -> None:
    """Refuse a spec that declares other tensors than its ONNX file has.

    Raises:
        InvalidArgument: Names the tensor, and what the file has.
    """
    for side, declared, there in (
        ("inputs", spec.inputs, found.inputs),
        ("outputs", spec.outputs, found.outputs),
    ):
        known = {item.name: item for item in there}
        for index, port in enumerate(declared):
            where = f"spec.{side}[{index}]"
            item = known.get(port.tensor_name)
            if item is None:
                have = ", ".join(known) or "none"
                raise InvalidArgument(
                    f"the file has no {side[:-1]} '{port.tensor_name}'; it has {have}", field=where
                )
            if port.kind != "tensor" or port.datatype != item.datatype:
                raise InvalidArgument(
                    f"'{port.tensor_name}' is a tensor of {item.datatype or 'no type we know'}",
                    field=where,
                )
        needed = [name for name in known if name not in {port.tensor_name for port in declared}]
        if side == "inputs" and needed:
            raise InvalidArgument(f"the file also needs '{needed[0]}'", field="spec.inputs")


def spec_of_onnx(
    found: OnnxSummary, source: str, *, modality: Modality, max_batch_size: int = 0
) -> ModelSpec:
    """Return the spec of a model from what its file says of itself.

    Raises:
        InvalidArgument: A tensor has a type that nothing here can carry, or two have one name.
    """

    def ports(items: Sequence[OnnxTensor]) -> list[dict[str, object]]:
        return [
            {
                "name": port_name(item.name),
                "tensor": item.name,
                "kind": "tensor",
                "datatype": item.datatype,
                "shape": list(item.shape),
            }
            for item in items
        ]

    for item in (*found.inputs, *found.outputs):
        if not item.datatype or not item.shape:
            raise InvalidArgument(
                f"'{item.name}' is no tensor of a known type and shape; write a model.yaml"
            )
    document = {
        "modality": modality,
        "engine": "onnx",
        "source": source,
        "accepts": [],
        "inputs": ports(found.inputs),
        "outputs": ports(found.outputs),
        "max_batch_size": max_batch_size,
    }
    try:
        return ModelSpec.model_validate(document)
    except ValidationError as error:
        raise invalid(error) from error


def port_name(tensor: str) -> str:
    """Return what workflows call a tensor: lower case, `_` for anything unusual."""
    plain = re.sub(r"[^a-z0-9_]", "_", tensor.lower())[:PORT_CHARS_MAX]
    return plain if plain[:1].isalpha() else f"t_{plain}"[:PORT_CHARS_MAX]
