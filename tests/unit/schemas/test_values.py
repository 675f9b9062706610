"""Values and their wire forms."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import InvalidArgument
from schemas.tensors import DATATYPE_SIZES
from schemas.values import (
    Binary,
    BlobRef,
    Tensor,
    from_json,
    from_wire,
    special_key,
    to_json,
    to_wire,
)


BLOB = BlobRef(media_type="audio/wav", size_bytes=3, sha256="a" * 64)
BINARY = Binary(media_type="image/png", data=b"\x00\xff")
TENSOR = Tensor(datatype="FP32", shape=(2, 1), data=bytes(8))

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text().filter(lambda key: not key.startswith("$")), inner, max_size=3)
    ),
    max_leaves=8,
)
SPECIAL = (
    st.builds(
        BlobRef,
        media_type=st.just("audio/wav"),
        size_bytes=st.integers(0, 2**40),
        sha256=st.text("0123456789abcdef", min_size=64, max_size=64),
    )
    | st.builds(Binary, media_type=st.just("text/plain; charset=utf-8"), data=st.binary())
    | st.binary(max_size=32).map(
        lambda data: Tensor(datatype="UINT8", shape=(len(data),), data=data)
    )
)


@given(PLAIN | SPECIAL)
def test_wire_round_trip(value: Any) -> None:
    """Any value comes back from its wire form."""
    assert value == from_wire(to_wire(value))


@given(st.dictionaries(st.text(), (PLAIN | SPECIAL).map(to_wire), max_size=3))
def test_json_round_trip(wire: dict[str, Any]) -> None:
    """Named values survive JSON text."""
    assert wire == from_json(json.loads(json.dumps(to_json(wire))))


@pytest.mark.parametrize(
    ("key", "value"), [("$blob", BLOB), ("$binary", BINARY), ("$tensor", TENSOR)]
)
def test_reserved_keys(key: str, value: Any) -> None:
    """Each special value has its own reserved key."""
    assert key == special_key(to_wire(value))


@pytest.mark.parametrize("wire", [{"$blob": 1, "x": 2}, {"blob": 1}, {}, [], "$blob", None])
def test_everything_else_is_plain(wire: Any) -> None:
    """Only an object with exactly one reserved key is special."""
    assert special_key(wire) is None
    assert wire == from_wire(wire)


@pytest.mark.parametrize(
    ("field", "wire"),
    [
        ("v.$blob.sha256", {"$blob": {"media_type": "a/b", "size_bytes": 1, "sha256": "xyz"}}),
        (
            "v.$blob.size_bytes",
            {"$blob": {"media_type": "a/b", "size_bytes": -1, "sha256": "a" * 64}},
        ),
        (
            "v.$blob.media_type",
            {"$blob": {"media_type": "wav", "size_bytes": 1, "sha256": "a" * 64}},
        ),
        ("v.$binary.data", {"$binary": {"media_type": "a/b"}}),
        ("v.$tensor.shape.0", {"$tensor": {"datatype": "FP32", "shape": [-1], "data": b""}}),
        ("v.$tensor.shape", {"$tensor": {"datatype": "FP32", "shape": [1] * 17, "data": b""}}),
        ("v.$binary", {"$binary": "text"}),
    ],
)
def test_malformed_special_names_the_field(field: str, wire: Any) -> None:
    """A reserved key with the wrong content is refused and named."""
    with pytest.raises(InvalidArgument) as caught:
        from_wire(wire, field="v")
    assert field == caught.value.field


@pytest.mark.parametrize("text", ["no base64!", "YQ", "YQ==\n", "YQ==YQ=="])
def test_malformed_base64_is_refused(text: str) -> None:
    """Bytes in JSON are strict base64."""
    with pytest.raises(InvalidArgument) as caught:
        from_json({"audio": {"$binary": {"media_type": "audio/wav", "data": text}}})
    assert "inputs.audio.$binary.data" == caught.value.field


def test_json_bytes_are_base64() -> None:
    """HTTP clients see base64, workers see bytes."""
    document = to_json({"image": to_wire(BINARY)})
    expected = {"media_type": "image/png", "data": base64.b64encode(b"\x00\xff").decode()}
    assert {"image": {"$binary": expected}} == document
    assert {"image": to_wire(BINARY)} == from_json(document)


@pytest.mark.parametrize("datatype", DATATYPE_SIZES)
def test_tensor_bytes_fill_the_shape(datatype: str) -> None:
    """Every datatype needs exactly product(shape) times its size."""
    size = DATATYPE_SIZES[datatype]
    Tensor(datatype=datatype, shape=(3, 2), data=bytes(6 * size)).check()
    with pytest.raises(InvalidArgument, match=f"{6 * size} bytes"):
        Tensor(datatype=datatype, shape=(3, 2), data=bytes(6 * size + 1)).check()


@pytest.mark.parametrize(("shape", "size"), [((), 4), ((0,), 0), ((5, 0, 2), 0)])
def test_scalars_and_empty_tensors(shape: tuple[int, ...], size: int) -> None:
    """A shape of no axis is one element; a zero axis is none."""
    Tensor(datatype="INT32", shape=shape, data=bytes(size)).check()


def test_unknown_datatype_is_refused() -> None:
    """The complaint says which datatypes there are."""
    with pytest.raises(InvalidArgument, match="use one of BOOL"):
        Tensor(datatype="STRING", shape=(1,), data=b"x").check()


def test_tensor_in_json_is_checked() -> None:
    """A tensor from a user with too few bytes never gets in."""
    tensor = {"datatype": "FP32", "shape": [2], "data": base64.b64encode(bytes(4)).decode()}
    with pytest.raises(InvalidArgument, match="needs 8 bytes"):
        from_json({"t": {"$tensor": tensor}})
