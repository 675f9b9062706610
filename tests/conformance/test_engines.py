"""The contract of engines, over every one of them, and one of another package."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from schemas import catalogue
from schemas.catalogue import ModelSpec
from schemas.errors import ModelUnavailable
from services.workers.engine import AnyEngine, AsyncEngine, BatchEngine, Engine
from services.workers.engines import ENGINE_NAMES, engine_of
from tests.support import guides, packages


PLUGIN = "reading_time"
SHIPPED = {spec.engine: spec for spec in catalogue.load().models.values()}


def spec(engine: str, source: str | None) -> ModelSpec:
    """Return a catalogue entry whose weights are absent; the shipped one where there is one."""
    if engine in SHIPPED:
        return SHIPPED[engine].model_copy(update={"source": source})
    ports = [{"name": "x", "kind": "tensor", "datatype": "FP32", "shape": [-1, 2]}]
    document: dict[str, Any] = {"modality": "text", "engine": engine, "source": source}
    return ModelSpec.model_validate({**document, "inputs": ports, "outputs": ports})


@pytest.fixture(params=[*ENGINE_NAMES, PLUGIN])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[AnyEngine]:
    """Return each engine, not loaded, of a model that is not there."""
    guides.write("engine-plugin", tmp_path)
    packages.install_project(tmp_path, tmp_path / "site")
    with packages.on_path(tmp_path / "site"):
        yield engine_of(spec(request.param, "absent/model"), tmp_path / "models")


def test_it_is_one_kind_of_engine(made: AnyEngine) -> None:
    """It computes here, or it waits for somebody else."""
    assert isinstance(made, Engine) != isinstance(made, AsyncEngine)
    assert not isinstance(made, BatchEngine) or made.blocking


def test_what_is_missing_is_told_in_words(made: AnyEngine, tmp_path: Path) -> None:
    """Twice the same, and no path of the machine is in it: clients read it."""
    first, again = made.missing(), made.missing()
    assert first == again
    assert first is None or (first and str(tmp_path) not in first and "Traceback" not in first)
    assert isinstance(made.is_uncertain(), bool)


def test_what_is_not_loaded_can_be_closed(made: AnyEngine) -> None:
    """Once and twice."""
    made.close()
    made.close()


def test_what_is_missing_cannot_be_loaded(made: AnyEngine, tmp_path: Path) -> None:
    """It is unavailable, which may pass, in words that a client may read."""
    if made.missing() is None:
        pytest.skip("it needs nothing that could be missing")
    pytest.importorskip("onnxruntime", reason="the extra `models` is not installed")
    if "not installed" in (made.missing() or ""):
        pytest.skip("its library is not installed: nothing is left to load")
    with pytest.raises(ModelUnavailable) as caught:
        made.load()
    assert str(tmp_path) not in caught.value.message


def test_nothing_is_taken_twice(made: AnyEngine) -> None:
    """An engine keeps its model's spec as it was given."""
    assert made.spec == made.spec.model_copy()
    assert made.spec.source == "absent/model"
