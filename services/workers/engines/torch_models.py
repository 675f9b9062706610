"""What the engines on torch share: local files, safetensors, the device that is asked for."""

import gc
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import override

from schemas import hf_files
from schemas.catalogue import ModelSpec
from schemas.errors import EngineFailed, ModelUnavailable
from services.workers import devices
from services.workers.engine import AnyEngine
from services.workers.engines import fields


DTYPES = ("auto", "float32", "float16", "bfloat16")
DEVICES = re.compile(r"auto|cpu|mps|cuda(:\d{1,3})?|xpu(:\d{1,3})?|npu(:\d{1,3})?")


class OnTorch(AnyEngine):
    """An engine whose model torch holds, on one device."""

    packages: ClassVar[tuple[str, ...]] = ("torch", "transformers")
    model: Any = None
    device: str = "cpu"

    @override
    def gpu(self) -> int | None:
        return gpu_of(device_of(self.spec.params))

    @override
    def is_for_gpu(self) -> bool:
        asked = asked_device(self.spec.params)
        return asked.startswith("cuda") or (asked == "auto" and bool(devices.gpus()))

    @override
    def devices(self) -> tuple[str, ...]:
        return (self.device,)

    @override
    def close(self) -> None:
        self.model = None
        if self.device != "cpu":
            release()


def release() -> None:
    """Have torch give back the memory of devices that nobody uses any more."""
    import torch

    gc.collect()  # modules know each other
    torch.cuda.empty_cache()  # nothing without CUDA


@contextmanager
def computing(failure: str) -> Iterator[None]:
    """Compute without gradients; what torch raises is the engine's failure.

    Raises:
        EngineFailed: Says `failure`, or that the device has not enough memory.
    """
    import torch

    try:
        with torch.inference_mode():
            yield
    except torch.OutOfMemoryError as error:
        text = "the device has not enough memory to compute this input"
        raise EngineFailed(text, cause=str(error)) from error
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise EngineFailed(failure, cause=str(error)) from error


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
        dtype_of(spec.params, asked_device(spec.params))
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


def keep_share(spec: ModelSpec, device: str) -> None:
    """Keep this process within its share of a GPU's memory: it has this one model.

    Source: torch.cuda.set_per_process_memory_fraction.
    """
    import torch

    share = None if spec.limits is None else spec.limits.gpu_share
    gpu = gpu_of(device)
    if share is not None and gpu is not None:
        torch.cuda.set_per_process_memory_fraction(share, gpu)


def model(kind: Any, spec: ModelSpec, folder: Path) -> tuple[Any, str]:
    """Load weights from safetensors onto a device; returns the model and the device.

    Args:
        kind: A class of transformers with `from_pretrained`.
        spec: Its params `device` and `strict_device`, see `device_of`, and `dtype`, see `dtype_of`;
            its share of a GPU.
        folder: See `directory`.

    Raises:
        ModelUnavailable: A file is absent or damaged, the folder asks for code, no such device.
    """
    import torch
    from safetensors import SafetensorError
    from transformers.utils import logging

    logging.disable_progress_bar()
    check(folder)
    device = device_of(spec.params)
    keep_share(spec, device)
    dtype = getattr(torch, dtype_of(spec.params, device))
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

    Raises:
        ModelUnavailable: Names the file.
    """
    root = folder.resolve()
    for path in sorted(folder.rglob("*")):
        name = f"{folder.name}/{path.name}"
        if not path.resolve().is_relative_to(root):
            raise ModelUnavailable(f"{name} is a link out of the folder: copy it with cp -rL")
        if path.suffix == ".json" and path.is_file():
            with path.open("rb") as file:
                hf_files.check_document(name, file.read(hf_files.CONFIG_BYTES_MAX + 1))


def dtype_of(params: Mapping[str, Any], device: str) -> str:
    """Return the datatype of a model's numbers: what the catalogue asks for.

    By default `float16` on CUDA and `float32` elsewhere.

    Raises:
        ModelUnavailable: None that there is.
    """
    asked = params.get("dtype", "auto")
    if asked not in DTYPES:
        raise ModelUnavailable(f"'dtype' is one of {', '.join(DTYPES)}")
    if asked != "auto":
        return str(asked)
    return "float16" if device.startswith("cuda") else "float32"


def asked_device(params: Mapping[str, Any]) -> str:
    """Return the device that a catalogue entry asks for: `auto` by default.

    Raises:
        ModelUnavailable: No device's name.
    """
    asked = params.get("device", "auto")
    if not isinstance(asked, str) or not DEVICES.fullmatch(asked):
        raise ModelUnavailable("'device' is one of auto, cpu, cuda, cuda:1, mps, xpu, npu")
    return asked


def gpu_of(device: str) -> int | None:
    """Return the number of a device that is an NVIDIA GPU; None for any other."""
    kind, _, index = device.partition(":")
    return int(index or 0) if kind == "cuda" else None


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
