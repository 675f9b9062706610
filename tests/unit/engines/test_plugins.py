"""Engines of other packages: found by their entry point, or refused with a reason."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.catalogue import Catalogue
from schemas.errors import FailedPrecondition, ModelUnavailable, NotFound
from services.workers.engine import Request
from services.workers.engines import check_plugins, engine_class
from services.workers.models import Capacity, Models
from tests.support import packages


SHOUT = """
from services.workers.engine import AsyncEngine, Engine

class Shout(Engine):
    def infer(self, batch):
        return [{"text": request.inputs["text"].upper()} for request in batch]

class Unfinished(AsyncEngine):
    pass

def function():
    pass
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Return a folder whose packages are installed."""
    with packages.on_path(tmp_path):
        yield tmp_path


def document(engine: str) -> dict[str, object]:
    """Return a catalogue entry."""
    ports = [{"name": "text", "kind": "text"}]
    return {"modality": "text", "engine": engine, "inputs": ports, "outputs": ports}


def models(*engines: str) -> Models:
    """Return a worker's models, one for each engine."""
    catalogue = Catalogue.model_validate({"models": {name: document(name) for name in engines}})
    return Models(catalogue, "text", Path(), allow_fallback=True, capacity=Capacity())


async def test_an_installed_engine_serves(folder: Path) -> None:
    """Like clawdbot's own, beside them."""
    packages.install(folder, "shout-a", {"shout_a": "shout_a:Shout"}, shout_a=SHOUT)
    held = models("shout_a", "echo")
    assert ("shout_a",) == check_plugins()
    assert [True, True] == [offer.available for offer in held.offers()]
    assert {"text": "HI"} == (await held.infer("shout_a", Request({"text": "hi"}))).outputs
    held.close()


async def test_a_model_without_its_engine_says_so(folder: Path) -> None:
    """On its card, with the engines there are and how to get another; the others are served."""
    packages.install(folder, "shout-b", {"shout_b": "shout_b:Shout"}, shout_b=SHOUT)
    held = models("whisper_b", "echo")
    gone, echo = held.offers()
    assert (False, True) == (gone.available, echo.available)
    for words in ("no engine named 'whisper_b'", "echo", "shout_b", "pip install <package>"):
        assert words in gone.reason
    with pytest.raises(ModelUnavailable, match="no engine named 'whisper_b'"):
        await held.infer("whisper_b", Request({"text": "hi"}))
    assert {"text": "hi"} == (await held.infer("echo", Request({"text": "hi"}))).outputs
    held.close()


def test_nobody_replaces_an_engine(folder: Path) -> None:
    """A package that takes clawdbot's name stops the worker, and is named; ours is ours."""
    packages.install(folder, "evil", {"onnx": "evil:Shout"}, evil=SHOUT)
    with pytest.raises(FailedPrecondition, match="package evil brings an engine called 'onnx'"):
        check_plugins()
    assert "services.workers.engines.onnx" == engine_class("onnx").__module__


def test_two_packages_with_one_name(folder: Path) -> None:
    """Neither wins; both are named."""
    packages.install(folder, "one", {"same": "one:Shout"}, one=SHOUT)
    packages.install(folder, "two", {"same": "two:Shout"}, two=SHOUT)
    with pytest.raises(FailedPrecondition, match=r"'same', and so does the package (one|two)"):
        engine_class("same")


@pytest.mark.parametrize("name", ["Loud", "lo-ud", "1st"])
def test_a_name_that_no_catalogue_can_have(name: str, folder: Path) -> None:
    """Is refused when the worker starts."""
    packages.install(folder, "odd", {name: "odd:Shout"}, odd=SHOUT)
    with pytest.raises(FailedPrecondition, match="lower case letters, digits and _"):
        check_plugins()


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("absent_module:Shout", "cannot be imported .there is no module 'absent_module'"),
        ("bad:Absent", "cannot be imported .AttributeError"),
        ("bad:function", "not a class derived from Engine"),
        ("bad:Unfinished", "does not have answer"),
    ],
)
def test_what_is_no_engine(value: str, says: str, folder: Path) -> None:
    """Is told with its package when a model asks for it; no path of the machine is in it."""
    packages.install(folder, "bad", {"bad": value}, bad=SHOUT)
    assert ("bad",) == check_plugins()
    with pytest.raises(FailedPrecondition, match=says) as caught:
        engine_class("bad")
    assert "the package bad" in caught.value.message
    assert str(folder) not in caught.value.message


def test_no_engine_at_all() -> None:
    """Names those known, and how to get another one."""
    with pytest.raises(NotFound, match=r"known: .*onnx.*pip install"):
        engine_class("nobody")
