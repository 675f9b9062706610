"""Finds out what a source is: a file, a folder, or a function of one's own that gives a model."""

import inspect
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from clawdbot.conversion.hf_source import folder_source
from clawdbot.conversion.onnx_source import OnnxSource
from clawdbot.conversion.sklearn_source import SklearnSource
from clawdbot.conversion.source import Source, need
from clawdbot.conversion.torch_source import (
    TorchSource,
    module_source,
    program_file,
)
from schemas.errors import InvalidArgument


PICKLES = {".pkl", ".pickle", ".joblib", ".pt", ".pth", ".bin", ".ckpt"}


def open_source(source: str, task: str = "embedding") -> Source:
    """Return the model behind a path or `module:function`.

    Args:
        source: An .onnx or .pt2 file, a folder of transformers, or a function that is called here.
        task: Of a folder.

    Raises:
        InvalidArgument: It is none of these, or not what it claims; says what to do.
        FailedPrecondition: A library is not installed.
    """
    path = Path(source)
    if path.suffix in PICKLES:
        raise InvalidArgument(
            f"{path.name} is a pickle, which runs code when it is read. If it is yours, write a "
            "function that reads it and returns the model: clawdbot convert my_module:load"
        )
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InvalidArgument(
                f"{path.name} has no config.json: it is no folder of transformers"
            )
        return folder_source(path, task)
    if path.is_file():
        if path.suffix == ".pt2":
            return program_file(path)
        if path.suffix == ".onnx":
            return OnnxSource(path)
        raise InvalidArgument(f"{path.name}: a source is an .onnx or .pt2 file, a folder, or code")
    module, colon, name = source.partition(":")
    if not colon or not all(part.isidentifier() for part in (*module.split("."), name)):
        raise InvalidArgument(
            f"there is no file or folder '{source}'; a function of yours is named module:function"
        )
    return _from_function(module, name, source)


def _from_function(module: str, name: str, source: str) -> Source:
    """Call a function of one's own, from here or an installed package.

    Raises:
        InvalidArgument: It cannot be called, or gives nothing that can be converted.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(import_module(module), name)
        found = function() if inspect.isroutine(function) or inspect.isclass(function) else function
    except Exception as error:
        raise InvalidArgument(f"{source} failed: {type(error).__name__}: {error}") from error
    return _from_object(found, source)


def _from_object(found: Any, source: str) -> Source:
    kind = type(found)
    if kind.__name__ == "ExportedProgram" and kind.__module__.startswith("torch."):
        return TorchSource(found, source)
    if hasattr(found, "n_features_in_") or hasattr(found, "fit"):
        return SklearnSource(found, source)
    if isinstance(found, tuple) and found and hasattr(found[0], "named_parameters"):
        need("torch", "torch")
        module, *rest = found
        kwargs = rest.pop() if rest and isinstance(rest[-1], dict) else {}
        args = rest[0] if len(rest) == 1 and isinstance(rest[0], tuple | list) else rest
        return module_source(module, args, kwargs, source)
    raise InvalidArgument(
        f"{source} gives {kind.__name__}; it must give a fitted estimator, an ExportedProgram, or "
        "(module, example inputs, ...)"
    )
