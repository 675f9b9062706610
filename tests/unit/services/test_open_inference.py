"""Reading inferences: whatever comes is understood or refused, and nothing is changed."""

import contextlib
import json
import math
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import tensors
from schemas.catalogue import ModelSpec, Port
from schemas.errors import InvalidArgument
from schemas.values import Tensor
from services.gateway.inference import answers, elements, forms, generate


RANGES = {
    "UINT8": (0, 2**8 - 1),
    "UINT16": (0, 2**16 - 1),
    "UINT32": (0, 2**32 - 1),
    "UINT64": (0, 2**64 - 1),
    "INT8": (-(2**7), 2**7 - 1),
    "INT16": (-(2**15), 2**15 - 1),
    "INT32": (-(2**31), 2**31 - 1),
    "INT64": (-(2**63), 2**63 - 1),
}
SHAPES = st.lists(st.integers(0, 3), max_size=4)


def items(datatype: str) -> st.SearchStrategy[Any]:
    """Return elements of a datatype."""
    if datatype in RANGES:
        return st.integers(*RANGES[datatype])
    return {
        "BOOL": st.booleans(),
        "BYTES": st.text(max_size=8),
        "FP32": st.floats(width=32, allow_nan=False, allow_infinity=False),
        "FP64": st.floats(allow_nan=False, allow_infinity=False),
    }[datatype]


def spec(*ports: tuple[str, str, tuple[int, ...]]) -> ModelSpec:
    """Return a model of these tensors, the last of which is its output."""
    made = tuple(
        Port(name=name, kind="tensor", datatype=datatype, shape=shape)
        for name, datatype, shape in ports
    )
    return ModelSpec(modality="text", engine="onnx", inputs=made[:-1], outputs=made[-1:])


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([*RANGES, "BOOL", "BYTES", "FP32", "FP64"]), SHAPES, st.data())
def test_numbers_survive(datatype: str, shape: list[int], data: st.DataObject) -> None:
    """JSON to bytes to JSON, nested or flat."""
    count = math.prod(shape)
    flat = data.draw(st.lists(items(datatype), min_size=count, max_size=count))
    nested: list[Any] = flat
    for size in reversed(shape[1:] if count else []):
        nested = [nested[at : at + size] for at in range(0, len(nested), size)]
    for form in (flat, nested):
        tensor = elements.from_json(datatype, shape, orjson.loads(orjson.dumps(form)))
        tensor.check()
        assert flat == elements.to_json(tensor)


@pytest.mark.parametrize("datatype", RANGES)
def test_numbers_out_of_range_are_refused(datatype: str) -> None:
    """One more, one less, and what is no whole number."""
    low, high = RANGES[datatype]
    for number in (low - 1, high + 1, 0.5, 1e30, True, "1"):
        with pytest.raises(InvalidArgument):
            elements.from_json(datatype, [1], [number])


def body_of(shape: list[int], datatype: str, size: int) -> bytes:
    """Return the JSON of a request with binary data."""
    params = {"binary_data_size": size}
    tensor = {"name": "x", "shape": shape, "datatype": datatype, "parameters": params}
    return json.dumps({"id": "a", "inputs": [tensor]}).encode()


@settings(max_examples=500, deadline=None)
@given(
    st.integers(0, 200),
    st.binary(max_size=4),
    st.integers(0, 130),
    st.one_of(st.none(), st.integers(0, 200)),
)
def test_damaged_bodies_are_refused_or_read(
    at: int, patch: bytes, cut: int, length: int | None
) -> None:
    """Bytes put in, taken out, or counted otherwise: an error of ours, or inputs that fit."""
    model = spec(("x", "FP32", (-1, 2)), ("y", "FP32", (-1,)))
    text = body_of([2, 2], "FP32", 16)
    whole = text + bytes(range(16))
    damaged = whole[:at] + patch + whole[at + len(patch) :][: max(0, len(whole) - cut)]
    with contextlib.suppress(InvalidArgument):
        ask = forms.parse(damaged, len(text) if length == 0 else length, model)
        tensor = ask.inputs["x"]
        assert isinstance(tensor, Tensor)
        assert tensors.fits(tensor.shape, (-1, 2))
        assert len(tensor.data) == 8 * tensor.shape[0]


@settings(max_examples=300, deadline=None)
@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**70), 2**70)
        | st.floats()
        | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
        max_leaves=8,
    ),
    st.sampled_from(["id", "inputs", "outputs", "parameters", "name", "shape", "datatype", "data"]),
)
def test_any_json_anywhere_is_refused_or_read(value: Any, place: str) -> None:
    """Whatever stands where a field belongs."""
    model = spec(("x", "FP32", (-1, 2)), ("y", "FP32", (-1,)))
    document: dict[str, Any] = {
        "inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]
    }
    (document["inputs"][0] if place in document["inputs"][0] else document)[place] = value
    with contextlib.suppress(InvalidArgument):
        forms.parse(json.dumps(document).encode(), None, model)


def test_a_form_is_of_one_model() -> None:
    """What was read for one is not taken for another, and what was refused is refused again."""
    tensor = {"name": "x", "shape": [2], "datatype": "UINT8"}
    said = {"inputs": [{**tensor, "parameters": {"binary_data_size": 2}}]}
    text = json.dumps(said).encode()
    model, other = (spec(("x", kind, (2,)), ("y", kind, (2,))) for kind in ("UINT8", "INT8"))
    for data in (b"ab", b"cd"):
        assert data == forms.parse(text + data, len(text), model).inputs["x"].data
        with pytest.raises(InvalidArgument, match="the datatype is INT8"):
            forms.parse(text + data, len(text), other)


def test_forms_are_few() -> None:
    """However many different heads come, so many stay; they are read again when they come again."""
    model, kept = spec(("x", "UINT8", (-1,)), ("y", "UINT8", (-1,))), forms.Forms()
    said = {"name": "x", "shape": [0], "datatype": "UINT8", "parameters": {"binary_data_size": 0}}
    first = json.dumps({"inputs": [said]}).encode()
    form = kept.of(first, model)
    assert form is kept.of(first, model)
    for number in range(forms.HEADS_KEPT):
        kept.of(first.replace(b"[0]", b"[%d]" % (number + 1)), model)
    assert form is not kept.of(first, model)
    assert len(kept) == forms.HEADS_KEPT


def test_bytes_are_the_bytes_that_came() -> None:
    """BF16 as well, which only binary data carries, in the order of the JSON."""
    model = spec(("x", "BF16", (2,)), ("t", "BYTES", (-1,)), ("y", "BF16", (2,)))
    blob = b"\1\2\3\4" + tensors.pack([b"\xff", b""])
    inputs = [
        {"name": "x", "shape": [2], "datatype": "BF16", "parameters": {"binary_data_size": 4}},
        {"name": "t", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": 9}},
    ]
    text = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    ask = forms.parse(text + blob, len(text), model)
    assert [b"\1\2\3\4", blob[4:]] == [ask.inputs[name].data for name in ("x", "t")]
    found, size = answers.encode({"model_name": "m"}, ask.outputs, {"y": ask.inputs["x"]})
    body = bytes(found)
    assert size is not None
    assert b"\1\2\3\4" == body[size:]
    [output] = orjson.loads(body[:size])["outputs"]
    assert ("BF16", {"binary_data_size": 4}) == (output["datatype"], output["parameters"])


def reader(vocabulary: bool = True) -> ModelSpec:
    """Return a model of tokens, and one of pixels where there is no vocabulary."""
    scores = {"name": "logits", "kind": "tensor", "datatype": "FP32", "shape": [-1, 2]}
    tokens = {"kind": "tensor", "datatype": "INT64", "shape": [-1, -1]}
    names = ("input_ids", "attention_mask", "token_type_ids")
    document = {
        "modality": "text",
        "engine": "onnx",
        "inputs": [{"name": name, **tokens, "tensor": name.upper()} for name in names],
        "outputs": [scores],
        "signature": "sequence-classification/1",
    }
    told = {"path": "vocab.txt", "sha256": "a" * 64}
    return ModelSpec.model_validate(document | ({"vocabulary": told} if vocabulary else {}))


def asked_with(model: ModelSpec, *inputs: dict[str, Any]) -> Any:
    """Return the inputs of a request."""
    return forms.parse(orjson.dumps({"inputs": list(inputs)}), None, model).inputs


def test_a_text_in_the_place_of_tokens() -> None:
    """One text is all of its tokens; what is given as numbers stays as it is."""
    text = {"name": "INPUT_IDS", "datatype": "BYTES", "shape": [1], "data": ["hello"]}
    mask = {"name": "ATTENTION_MASK", "datatype": "INT64", "shape": [1, 2], "data": [1, 1]}
    names = ("input_ids", "attention_mask", "token_type_ids")
    assert dict.fromkeys(names, "hello") == asked_with(reader(), text)
    found = asked_with(reader(), text, mask)
    assert (1, 2) == found["attention_mask"].shape
    assert "hello" == found["token_type_ids"]
    with pytest.raises(InvalidArgument, match="'INPUT_IDS': send one element, with text"):
        asked_with(reader(), {**text, "shape": [2], "data": ["a", "b"]})
    with pytest.raises(InvalidArgument, match="'INPUT_IDS' is missing"):
        asked_with(reader(), mask)
    with pytest.raises(InvalidArgument, match="the datatype is INT64, not BYTES"):
        asked_with(reader(vocabulary=False), text)
    plain = generate.ask_of(b'{"text_input": "hello"}', reader())
    assert dict.fromkeys(names, "hello") == plain.inputs
    named = generate.ask_of(b'{"ATTENTION_MASK": "hello"}', reader())
    assert dict.fromkeys(names, "hello") == named.inputs


def test_a_file_in_the_place_of_pixels() -> None:
    """Any bytes: whether they are an image shows where it is read."""
    pixels = Port(
        name="pixels", kind="tensor", datatype="FP32", shape=(-1, 3, 4, 4), content="pixels/unit"
    )
    model = ModelSpec(modality="vision", engine="onnx", inputs=(pixels,), outputs=())
    found = asked_with(model, {"name": "pixels", "datatype": "BYTES", "shape": [1], "data": ["x"]})
    assert b"x" == found["pixels"].data
