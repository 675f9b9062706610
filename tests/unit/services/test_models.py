"""The models of a worker: loaded when they are asked for, or at start; cards say what is true."""

from pathlib import Path
from typing import Any

import pytest

from schemas.catalogue import Catalogue
from schemas.errors import InvalidArgument, ModelUnavailable
from services.workers.engine import Request
from services.workers.engines import onnx
from services.workers.models import Capacity, Models
from tests.support import onnx_models as tiny


def models(folder: Path, documents: dict[str, Any]) -> Models:
    """Return the models of a catalogue."""
    catalogue = Catalogue.model_validate({"models": documents})
    return Models(catalogue, "text", folder, allow_fallback=True, capacity=Capacity())


async def test_only_some_are_loaded_at_start(tmp_path: Path) -> None:
    """Those that say so; the others when somebody asks."""
    found = tiny.entries(tmp_path)
    held = models(tmp_path, {**found, "picky": {**found["picky"], "preload": True}})
    await held.preload()
    assert ["picky"] == list(held._cache.residents)
    held.close()


async def test_what_cannot_load_is_on_the_card(tmp_path: Path) -> None:
    """With the reason, until a later try works."""
    document = {**tiny.entries(tmp_path)["doubling"], "preload": True}
    (tmp_path / "doubling.onnx").write_bytes(b"no model")
    held = models(tmp_path, {"doubling": document})
    assert held.offers()[0].available
    await held.preload()
    [offer] = held.offers()
    assert (False, "the file is no ONNX model: it is damaged") == (offer.available, offer.reason)
    with pytest.raises(ModelUnavailable, match="it is damaged"):
        await held.infer("doubling", Request({}))
    tiny.save(tiny.doubling(), tmp_path / "doubling.onnx")
    with pytest.raises(InvalidArgument):
        await held.infer("doubling", Request({}))
    assert held.offers()[0].available
    held.close()


async def test_a_provider_that_turns_out_idle_is_found_at_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library has it, the machine has not: the model is not ready, and says why."""
    wanted = {"providers": ["CUDAExecutionProvider", "CPUExecutionProvider"]}
    monkeypatch.setattr(onnx.OnnxEngine, "_check_providers", lambda self: None)
    document = {**tiny.entries(tmp_path)["doubling"], "params": wanted}
    held = models(tmp_path, {"doubling": document})
    await held.preload()
    [offer] = held.offers()
    assert not offer.available
    assert "CUDAExecutionProvider is not active here" in offer.reason
    held.close()
