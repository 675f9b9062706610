"""Engines on torch, with the model on a GPU: the same numbers, and what goes wrong there."""

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.errors import EngineFailed, ModelUnavailable
from services.workers.engine import Request
from services.workers.models import Models
from tests.gpu.conftest import MIB, Hold, array, fp32


pytestmark = pytest.mark.filterwarnings("ignore")  # torch warns of itself
WIDTH = 1024


@pytest.fixture
def entry(torch: Any, tmp_path: Path) -> dict[str, Any]:
    """A perceptron [n, 1024] to [n, 1024], 8 MiB of weights."""
    torch.manual_seed(0)
    layers = (torch.nn.Linear(WIDTH, WIDTH), torch.nn.ReLU(), torch.nn.Linear(WIDTH, WIDTH))
    return export(torch, torch.nn.Sequential(*layers), tmp_path / "mlp.pt2")


def export(torch: Any, module: Any, path: Path) -> dict[str, Any]:
    """Write a module's program, and return its catalogue entry; on the GPU."""
    rows = torch.export.Dim("rows", max=4096)
    given = torch.randn(2, WIDTH)
    program = torch.export.export(module.eval(), (given,), dynamic_shapes=({0: rows},))
    torch.export.save(program, path)
    port = {"kind": "tensor", "datatype": "FP32", "shape": [-1, WIDTH]}
    return {
        "modality": "text",
        "engine": "torch",
        "source": path.name,
        "inputs": [{"name": "x", "tensor": "input", **port}],
        "outputs": [{"name": "y", "tensor": "output_0", **port}],
        "max_batch_size": 4096,
        "params": {"device": "cuda"},
    }


async def test_the_numbers_are_the_processors(entry: dict[str, Any], hold: Hold) -> None:
    """Within what FP32 may differ; together as alone."""
    held = hold(gpu=entry, cpu={**entry, "params": {"device": "cpu"}})
    given = np.random.default_rng(1).standard_normal((64, WIDTH)).astype(np.float32)
    here = await held.infer("cpu", Request({"x": fp32(given)}))
    there = await held.infer("gpu", Request({"x": fp32(given)}))
    alone = await each(held, "gpu", [row[None] for row in given])
    wanted = array(here.outputs["y"])
    np.testing.assert_allclose(wanted, array(there.outputs["y"]), atol=1e-4)
    np.testing.assert_allclose(wanted, np.concatenate(alone), atol=1e-4)
    assert {("cuda",), ("cpu",)} == {offer.devices for offer in held.offers()}


async def test_recorded_calls(entry: dict[str, Any], hold: Hold) -> None:
    """Give the same for any number of rows, with no trace of the call before."""
    held = hold(plain=entry, recorded={**entry, "params": {"device": "cuda", "cuda_graphs": True}})
    chance = np.random.default_rng(1)
    for rows in (1, 3, 64, 5, 1, 100, 4096, 3):
        asked = Request({"x": fp32(chance.standard_normal((rows, WIDTH)))})
        plain, recorded = await held.infer("plain", asked), await held.infer("recorded", asked)
        np.testing.assert_allclose(
            array(plain.outputs["y"]), array(recorded.outputs["y"]), atol=1e-4
        )
    [offer] = [offer for offer in held.offers() if offer.model == "recorded"]
    assert {str(rows) for rows in (1, 3, 5, 64, 100, 4096)} <= offer.latency_ms.keys()


async def test_what_cannot_be_recorded(torch: Any, tmp_path: Path, hold: Hold) -> None:
    """Is computed as ever, and what others record meanwhile too."""
    entry = export(torch, picky(torch), tmp_path / "picky.pt2")
    held = hold(model={**entry, "params": {"device": "cuda", "cuda_graphs": True}})
    given = np.random.default_rng(1).random((3, WIDTH), np.float32)
    for _ in range(2):
        answer = await held.infer("model", Request({"x": fp32(given)}))
        np.testing.assert_allclose(given, array(answer.outputs["y"]), rtol=1e-6)


def picky(torch: Any) -> Any:
    """Return a module that asks the GPU in between whether all is well."""

    class Module(torch.nn.Module):  # type: ignore[misc]
        def forward(self, input: Any) -> Any:  # noqa: A002 - its name in the program
            few = input[:, :8]
            return input + 0 * torch.linalg.eigvalsh(few.T @ few).sum()

    return Module()


async def test_a_gpu_that_is_not_there(entry: dict[str, Any], hold: Hold) -> None:
    """Is said, and the processor is no stand-in for it."""
    held = hold(model={**entry, "params": {"device": "cuda:63"}})
    with pytest.raises(ModelUnavailable, match="the device cuda:63 is not here"):
        await held.infer("model", Request({"x": fp32(np.zeros((1, WIDTH)))}))


async def each(held: Models, name: str, given: Iterable[Any]) -> list[Any]:
    """Return what a model computes of each array, all asked for at once."""
    async with asyncio.TaskGroup() as group:
        asked = [Request({"x": fp32(item)}) for item in given]
        tasks = [group.create_task(held.infer(name, request)) for request in asked]
    return [array(task.result().outputs["y"]) for task in tasks]


def greedy(torch: Any) -> Any:
    """Return a module that takes 1 MiB of the GPU for each row, for a moment."""

    class Module(torch.nn.Module):  # type: ignore[misc]
        def forward(self, input: Any) -> Any:  # noqa: A002 - its name in the program
            wide = input[:, :, None].expand(-1, -1, 256) * 1.0
            return wide.sum(-1) / 256

    return Module()


async def test_what_does_not_fit_together_is_computed_apart(
    torch: Any, tmp_path: Path, hold: Hold, gpu: Any
) -> None:
    """Out of memory with company is not out of memory alone; too large alone is an error, once."""
    share = 768 * MIB / gpu.memory_bytes
    entry = export(torch, greedy(torch), tmp_path / "greedy.pt2")
    held = hold(model={**entry, "limits": {"gpu_share": share}, "timeout_s": 60})
    given = np.random.default_rng(1).random((8, 200, WIDTH), np.float32)
    for item, found in zip(given, await each(held, "model", given), strict=True):
        np.testing.assert_allclose(item, found, rtol=1e-5)
    with pytest.raises(EngineFailed, match="has not enough memory"):
        await held.infer("model", Request({"x": fp32(np.zeros((2000, WIDTH)))}))
    after = await held.infer("model", Request({"x": fp32(given[0])}))
    np.testing.assert_allclose(given[0], array(after.outputs["y"]), rtol=1e-5)
    assert held.offers()[0].isolated
