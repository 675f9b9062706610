"""What the engines on torch share: local files, safetensors, the GPU where there is one."""

from pathlib import Path
from typing import Any

from schemas.catalogue import ModelSpec
from schemas.errors import ModelUnavailable
from services.workers.engines import fields


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
    try:
        return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelUnavailable(f"{folder.name} could not be loaded: a file is amiss") from error


def keep_share(spec: ModelSpec) -> None:
    """Keep this process within its share of a GPU's memory: it has this one model.

    Source: torch.cuda.set_per_process_memory_fraction.
    """
    import torch

    share = None if spec.limits is None else spec.limits.gpu_share
    if share is not None and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(share)


def model(kind: Any, folder: Path) -> tuple[Any, str]:
    """Load weights from safetensors onto the best device; returns the model and the device.

    Raises:
        ModelUnavailable: A file is absent or damaged.
    """
    import torch
    from safetensors import SafetensorError

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float16 if device == "cuda" else torch.float32
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
