"""What the engines on torch share: local files, safetensors, the device that is asked for."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import orjson

from schemas.catalogue import ModelSpec
from schemas.errors import ModelUnavailable
from services.workers.engines import fields


DEVICES = re.compile(r"auto|cpu|mps|cuda(:\d{1,3})?|xpu(:\d{1,3})?|npu(:\d{1,3})?")
CONFIG_BYTES_MAX = 64 * 1024 * 1024
_CODE = {"auto_map", "custom_pipelines", "custom_generate"}
"""Keys of a folder's JSON files that name code inside it, or elsewhere."""
_KERNELS = {"attn_implementation", "_attn_implementation", "experts_implementation"}
"""Keys whose value may name a repository of compiled kernels."""


def missing(spec: ModelSpec, models_dir: Path, *packages: str) -> str | None:
    """Return why the model cannot run here, or None; looks at files and packages only."""
    absent = fields.missing_package("torch", "transformers", *packages)
    if absent is not None:
        return absent
    folder = directory(spec, models_dir)
    if not (folder / "config.json").is_file():
        return f"there are no weights in {spec.source} below the models directory"
    if not any(folder.glob("*.safetensors")):
        return f"{spec.source} below the models directory holds no .safetensors file"
    try:
        asked_device(spec.params)
    except ModelUnavailable as error:
        return error.message
    return None


def directory(spec: ModelSpec, models_dir: Path) -> Path:
    """Return the folder of the weights.

    Raises:
        ModelUnavailable: The catalogue names none, or one outside the models directory.
    """
    folder = (models_dir / (spec.source or "")).resolve()
    if spec.source is None or not folder.is_relative_to(models_dir.resolve()):
        raise ModelUnavailable("the model's source is not a folder below the models directory")
    return folder


def pretrained(kind: Any, folder: Path) -> Any:
    """Load a tokenizer or processor from local files; code in the folder is never run.

    Raises:
        ModelUnavailable: A file is absent or damaged.
    """
    check(folder)
    try:
        return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelUnavailable(f"{folder.name} could not be loaded: a file is amiss") from error


def model(
    kind: Any, folder: Path, params: Mapping[str, Any] = MappingProxyType({})
) -> tuple[Any, str]:
    """Load weights from safetensors onto a device; returns the model and the device.

    Args:
        kind: A class of transformers with `from_pretrained`.
        folder: See `directory`.
        params: Of the catalogue entry: `device` and `strict_device`, see `device`.

    Raises:
        ModelUnavailable: A file is absent or damaged, the folder asks for code, no such device.
    """
    import torch
    from safetensors import SafetensorError
    from transformers.utils import logging

    logging.disable_progress_bar()
    check(folder)
    device = device_of(params)
    dtype = torch.float16 if device.startswith("cuda") else torch.float32
    try:
        loaded = kind.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=dtype,
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ModelUnavailable(f"{folder.name} could not be loaded: a file is amiss") from error
    return loaded.to(device).eval(), device


def check(folder: Path) -> None:
    """Refuse a folder that names code, or leads out of itself.

    `trust_remote_code=False` alone has not kept every version of every library from running what
    `auto_map` names (CVE-2026-22807), so nothing that asks for code is handed to one.

    Raises:
        ModelUnavailable: Names the file.
    """
    root = folder.resolve()
    for path in sorted(folder.rglob("*")):
        if not path.resolve().is_relative_to(root):
            raise ModelUnavailable(
                f"{folder.name}/{path.name} is a link out of the folder: copy it with cp -rL"
            )
        if path.suffix == ".json" and path.is_file():
            _check_document(path, f"{folder.name}/{path.name}")


def _check_document(path: Path, name: str) -> None:
    """Refuse a JSON file that names code."""
    if path.stat().st_size > CONFIG_BYTES_MAX:
        raise ModelUnavailable(f"{name} has over {CONFIG_BYTES_MAX} bytes")
    try:
        document = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise ModelUnavailable(f"{name} is no JSON") from error
    for key, value in _pairs(document):
        if key in _CODE:
            raise ModelUnavailable(
                f"{name} names code ('{key}'), which is never run: save the model as one of the "
                "library's own classes, or write an engine for it"
            )
        if key in _KERNELS and isinstance(value, str) and "/" in value:
            raise ModelUnavailable(f"{name} names kernels elsewhere: '{key}'")


def _pairs(document: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key of a JSON document with its value, wherever it is."""
    pending = [document]
    while pending:
        match pending.pop():
            case dict() as found:
                yield from found.items()
                pending += found.values()
            case list() as found:
                pending += found
            case _:
                pass  # a leaf


def asked_device(params: Mapping[str, Any]) -> str:
    """Return the device that a catalogue entry asks for: `auto` by default.

    Raises:
        ModelUnavailable: No device's name.
    """
    asked = params.get("device", "auto")
    if not isinstance(asked, str) or not DEVICES.fullmatch(asked):
        raise ModelUnavailable("'device' is one of auto, cpu, cuda, cuda:1, mps, xpu, npu")
    return asked


def device_of(params: Mapping[str, Any]) -> str:
    """Return the device to compute on: what is asked for, or the best where that is `auto`.

    Raises:
        ModelUnavailable: It is not here, and `strict_device: false` does not allow another.
    """
    import torch

    asked = asked_device(params)
    kind, _, index = asked.partition(":")
    here = ["cpu"]
    if torch.accelerator.is_available():
        here.insert(0, torch.accelerator.current_accelerator().type)
    if asked == "auto":
        return here[0]
    is_here = kind in here and (not index or int(index) < torch.accelerator.device_count())
    if is_here:
        return asked
    if params.get("strict_device", True) is not False:
        raise ModelUnavailable(
            f"the device {asked} is not here, only {', '.join(here)}; install it, or allow others "
            "with strict_device: false"
        )
    return here[0]
