"""The memory of a GPU: measured, kept within a budget, and given back."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.workers import devices
from services.workers.engine import Request
from services.workers.memory import Budget
from services.workers.models import Capacity, Models
from tests.gpu.conftest import MIB, Hold, array, fp32
from tests.support.wait import until_sync


pytestmark = pytest.mark.filterwarnings("ignore")  # torch warns of itself
SIDE = 4096
"""Of a matrix of 64 MiB."""


@pytest.fixture
def entry(torch: Any, tmp_path: Path) -> dict[str, Any]:
    """A model of 128 MiB on the GPU."""
    torch.manual_seed(0)
    both = (torch.nn.Linear(SIDE, SIDE, bias=False) for _ in range(2))
    module = torch.nn.Sequential(*both).eval()
    program = torch.export.export(module, (torch.randn(1, SIDE),))
    torch.export.save(program, tmp_path / "large.pt2")
    port = {"kind": "tensor", "datatype": "FP32", "shape": [1, SIDE]}
    return {
        "modality": "text",
        "engine": "torch",
        "source": "large.pt2",
        "inputs": [{"name": "x", "tensor": "input", **port}],
        "outputs": [{"name": "y", "tensor": "output_0", **port}],
        "params": {"device": "cuda"},
    }


def test_a_process_is_measured(torch: Any) -> None:
    """What it takes and gives back is seen from outside of torch."""
    devices.wake(0)
    before = devices.level()
    taken = torch.empty(256 * MIB, dtype=torch.uint8, device="cuda")
    assert 256 * MIB <= devices.level() - before < 512 * MIB
    del taken
    torch.cuda.empty_cache()
    assert devices.level() - before < 64 * MIB
    assert devices.used_bytes() > 0
    assert devices.held_bytes(os.getpid()) in {None, devices.level()}


async def infer(held: Models, name: str, given: Any) -> Any:
    """Return what a model computes."""
    answer = await held.infer(name, Request({"x": fp32(given)}))
    return array(answer.outputs["y"])


async def test_ten_models_in_the_room_of_three(entry: dict[str, Any], hold: Hold) -> None:
    """All of them answer rightly; never more than the budget is taken; what goes is given back."""
    names = [f"m{index}" for index in range(10)]
    room = Capacity(threads=2, budget=Budget(device=3 * 160 * MIB))
    held = hold(room, **dict.fromkeys(names, entry))
    given = np.random.default_rng(1).standard_normal((1, SIDE)).astype(np.float32)
    wanted = await infer(held, "m0", given)
    begun = devices.level()
    for index in np.random.default_rng(2).integers(0, len(names), 40):
        np.testing.assert_allclose(wanted, await infer(held, names[index], given), atol=1e-4)
        assert held.used.device <= 3 * 160 * MIB
        assert devices.level() - begun < 4 * 160 * MIB
    loaded = [offer for offer in held.offers() if offer.loaded]
    assert 2 <= len(loaded) <= 3
    assert all(128 * MIB <= offer.device_bytes < 200 * MIB for offer in loaded)
    assert all(not offer.isolated for offer in loaded)
    assert sum(held.counters(name).eviction_count for name in names) > 10


async def test_unloading_gives_back(entry: dict[str, Any], hold: Hold) -> None:
    """Nearly all of it, so that nobody needs a process for that."""
    held = hold(first=entry, model=entry)
    given = np.ones((1, SIDE), np.float32)
    await infer(held, "first", given)  # the library's own room is there now
    before = devices.level()
    await infer(held, "model", given)
    assert devices.level() - before >= 128 * MIB
    held.withdraw("model")
    until_sync(lambda: devices.level() - before < 32 * MIB, timeout_s=30)
    assert not held._loader._kept


async def test_a_process_of_its_own(entry: dict[str, Any], hold: Hold) -> None:
    """Its memory is counted whole, and whole again when it is gone."""
    held = hold(model={**entry, "isolation": "process"})
    before = devices.used_bytes()
    await infer(held, "model", np.ones((1, SIDE), np.float32))
    [offer] = held.offers()
    assert offer.isolated
    assert offer.device_bytes >= 128 * MIB
    held.withdraw("model")
    until_sync(lambda: devices.used_bytes() - before < 32 * MIB, timeout_s=30)
