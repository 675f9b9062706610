"""Loaded engines, and real inputs where they exist beside the repository."""

import io
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from schemas import catalogue
from schemas.values import Binary, Value
from services.workers.engine import Engine, Request
from services.workers.engines import engine_class


REPOSITORY = Path(__file__).parents[3]
Infer = Callable[..., Mapping[str, Value]]


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Return the folder of real recordings and images, or skip."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no ../shared/data beside the repository: real inputs are not here")
    return folder


def run(engine: Engine, inputs: Mapping[str, Value], **params: Any) -> Mapping[str, Value]:
    """Run one request."""
    (outputs,) = engine.infer([Request(inputs=inputs, params=params)])
    return outputs


def loaded(name: str) -> Iterator[Infer]:
    """Yield a function that runs the model `name`, or skip where a library is absent."""
    spec = catalogue.load().models[name]
    engine = engine_class(spec.engine)(spec, Path("models-absent"))
    assert isinstance(engine, Engine)
    absent = engine.missing()
    if absent is not None:
        pytest.skip(absent)
    engine.load()
    yield partial(run, engine)
    engine.close()


@pytest.fixture(scope="session")
def pocketsphinx() -> Iterator[Infer]:
    """Run speech to text."""
    yield from loaded("pocketsphinx")


@pytest.fixture(scope="session")
def silero() -> Iterator[Infer]:
    """Run voice activity detection."""
    yield from loaded("silero-vad")


@pytest.fixture(scope="session")
def espeak() -> Iterator[Infer]:
    """Run text to speech."""
    yield from loaded("espeak-ng")


@pytest.fixture(scope="session")
def rapidocr() -> Iterator[Infer]:
    """Run the reader of images."""
    yield from loaded("rapidocr")


@pytest.fixture(scope="session")
def intent() -> Iterator[Infer]:
    """Run the intent model."""
    yield from loaded("intent-small")


@pytest.fixture(scope="session")
def embedding() -> Iterator[Infer]:
    """Run the embedding model."""
    yield from loaded("embedding-small")


@pytest.fixture(scope="session")
def ranking() -> Iterator[Infer]:
    """Run the ranking."""
    yield from loaded("ranking")


@pytest.fixture
def picture() -> Callable[..., Binary]:
    """Return a function that draws a text and saves it as an image."""
    image_module = pytest.importorskip("PIL.Image")
    draw_module = pytest.importorskip("PIL.ImageDraw")
    font_module = pytest.importorskip("PIL.ImageFont")

    def draw(text: str, *, form: str = "PNG", turn: int = 0, **save: Any) -> Binary:
        image = image_module.new("RGB", (640, 120), "white")
        font = font_module.load_default(48)
        draw_module.Draw(image).text((20, 30), text, fill="black", font=font)
        buffer = io.BytesIO()
        image.rotate(turn, expand=True).save(buffer, form, **save)
        return Binary(media_type=f"image/{form.lower()}", data=buffer.getvalue())

    return draw
