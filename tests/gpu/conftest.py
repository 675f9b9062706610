"""What the tests on a GPU share; without one they are skipped, all of them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.catalogue import Catalogue
from schemas.values import Tensor
from services.workers import devices
from services.workers.models import Capacity, Models


MIB = 1024 * 1024
Hold = Callable[..., Models]
"""Makes the models of a worker from catalogue entries by name."""


@pytest.fixture(autouse=True, scope="session")
def gpu() -> Any:
    """The first GPU; skips where there is none."""
    found = devices.gpus()
    if not found:
        pytest.skip("there is no NVIDIA GPU here")
    return found[0]


@pytest.fixture
def torch() -> Any:
    """Torch with CUDA, or skip."""
    library: Any = pytest.importorskip("torch", reason="the extra `torch` is not installed")
    if not library.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    return library


@pytest.fixture
def cuda() -> str:
    """The CUDA provider of onnxruntime, or skip."""
    library: Any = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    if "CUDAExecutionProvider" not in library.get_available_providers():
        pytest.skip("the extra `gpu` is not installed: this onnxruntime has no CUDA")
    return "CUDAExecutionProvider"


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Hold]:
    """Hold models whose files are in the test's folder."""
    held = []

    def make(capacity: Capacity = Capacity(), **entries: Any) -> Models:  # noqa: B008 - frozen
        catalogue = Catalogue.model_validate({"models": entries})
        held.append(Models(catalogue, "text", tmp_path, allow_fallback=True, capacity=capacity))
        return held[-1]

    yield make
    for item in held:
        item.close()


def fp32(array: Any) -> Tensor:
    """Return an array of numbers as a tensor."""
    data = np.ascontiguousarray(array, "<f4")
    return Tensor(datatype="FP32", shape=data.shape, data=data.tobytes())


def array(tensor: Any) -> Any:
    """Return a tensor of FP32 as an array."""
    return np.frombuffer(tensor.data, "<f4").reshape(tensor.shape)
