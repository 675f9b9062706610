"""The ONNX engine: signatures are held, files are not trusted, providers are what was asked for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from schemas import onnx_file, tensors
from schemas.errors import EngineFailed, InvalidArgument, ModelUnavailable
from schemas.values import Tensor, Value
from services.workers.engine import Request
from services.workers.engines import model_files
from services.workers.engines.onnx import OnnxEngine
from tests.support import onnx_models as tiny


X2 = tiny.port("X", "FP32", [-1, 2])
Y2 = tiny.port("Y", "FP32", [-1, 2])


def engine(folder: Path, document: Mapping[str, Any]) -> OnnxEngine:
    """Return a loaded engine."""
    made = OnnxEngine(tiny.spec(document), folder)
    assert made.missing() is None
    made.load()
    return made


def floats(*rows: Sequence[float]) -> Tensor:
    """Return an FP32 tensor."""
    array = np.array(rows, "<f4")
    return Tensor(datatype="FP32", shape=array.shape, data=array.tobytes())


def same(datatype: str, data: bytes) -> Tensor:
    """Return a tensor [1, 2]."""
    return Tensor(datatype=datatype, shape=(1, 2), data=data)


@pytest.mark.parametrize("datatype", tiny.TYPES)
def test_every_datatype_comes_back_as_it_went(datatype: str, tmp_path: Path) -> None:
    """Bit by bit, through a model that changes nothing."""
    document = tiny.entries(tmp_path)[f"same-{datatype.lower()}"]
    data = {
        "BOOL": b"\1\0",
        "BYTES": tensors.pack(["é".encode(), b""]),
    }.get(datatype, bytes(range(1, 1 + 2 * tensors.DATATYPE_SIZES.get(datatype, 0))))
    [outputs] = engine(tmp_path, document).infer([Request({"x": same(datatype, data)})])
    assert {"y": same(datatype, data)} == outputs


def test_a_batch_is_split_again(tmp_path: Path) -> None:
    """Requests of one to three rows in one call; each gets its own."""
    made = engine(tmp_path, tiny.entries(tmp_path)["doubling"])
    requests = [
        Request({"a": floats(*[[n, n, n]] * rows), "b": floats(*[[1, 2, 3]] * rows)})
        for n, rows in ((1.0, 1), (5.0, 3), (9.0, 2))
    ]
    assert 1 == len({made.batch_key(request) for request in requests})
    assert [1, 3, 2] == [made.rows(request) for request in requests]
    for outputs, (n, rows) in zip(made.infer(requests), ((1, 1), (5, 3), (9, 2)), strict=True):
        assert floats(*[[n + 1, n + 2, n + 3]] * rows) == outputs["sum"]
        assert floats(*[[2 * n] * 3] * rows) == outputs["twice"]


@pytest.mark.parametrize(
    ("inputs", "field", "says"),
    [
        ({"b": floats([1, 2, 3])}, "inputs.a", "must be a tensor"),
        ({"a": "text", "b": floats([1, 2, 3])}, "inputs.a", "must be a tensor"),
        ({"a": floats([1, 2]), "b": floats([1, 2, 3])}, "inputs.a", r"\[-1, 3\], not \[1, 2\]"),
        ({"a": floats([1, 2, 3]), "b": floats(*[[1, 2, 3]] * 2)}, "inputs", "first dimension"),
        ({"a": floats(*[[1, 2, 3]] * 9), "b": floats(*[[1, 2, 3]] * 9)}, "inputs.a", "1 to 8 rows"),
        (
            {"a": Tensor(datatype="FP32", shape=(0, 3), data=b""),
             "b": Tensor(datatype="FP32", shape=(0, 3), data=b"")},
            "inputs.a",
            "1 to 8 rows",
        ),
        (
            {"a": Tensor(datatype="FP64", shape=(1, 3), data=bytes(24)), "b": floats([1, 2, 3])},
            "inputs.a",
            "must be FP32, not FP64",
        ),
        (
            {"a": Tensor(datatype="FP32", shape=(1, 3), data=bytes(11)), "b": floats([1, 2, 3])},
            "inputs.a",
            "needs 12 bytes, the tensor has 11",
        ),
        (
            {"a": Tensor(datatype="FP32", shape=(2**31, 3), data=b""), "b": floats([1, 2, 3])},
            "inputs.a",
            "needs 25769803776 bytes",
        ),
    ],
)  # fmt: skip
def test_inputs_that_are_not_as_declared(
    inputs: Mapping[str, Value], field: str, says: str, tmp_path: Path
) -> None:
    """Are refused by name, and never share a batch."""
    made = engine(tmp_path, tiny.entries(tmp_path)["doubling"])
    assert made.batch_key(Request(inputs)) is None
    with pytest.raises(InvalidArgument, match=says) as caught:
        made.infer([Request(inputs)])
    assert field == caught.value.field


def test_text_must_be_utf8(tmp_path: Path) -> None:
    """ONNX strings are; BYTES of the protocol need not be."""
    made = engine(tmp_path, tiny.entries(tmp_path)["same-bytes"])
    with pytest.raises(InvalidArgument, match="not UTF-8"):
        made.infer([Request({"x": same("BYTES", tensors.pack([b"\xff", b""]))})])


def test_what_the_model_cannot_compute(tmp_path: Path) -> None:
    """An index outside of the table is the input's fault, found by the runtime."""
    made = engine(tmp_path, tiny.entries(tmp_path)["picky"])
    bad = Tensor(datatype="INT64", shape=(1, 1), data=(99).to_bytes(8, "little"))
    with pytest.raises(EngineFailed, match="could not compute"):
        made.infer([Request({"index": bad})])


@pytest.mark.parametrize(
    ("inputs", "outputs", "says"),
    [
        ([tiny.port("Z", "FP32", [-1, 2])], [Y2], "no input 'Z', only X"),
        ([tiny.port("X", "FP64", [-1, 2])], [Y2], r"declared FP64, the model has tensor\(float\)"),
        ([tiny.port("X", "FP32", [-1, 3])], [Y2], r"declared \[-1, 3\], the model has \[-1, 2\]"),
        ([tiny.port("X", "FP32", [-1, -1])], [Y2], r"declared \[-1, -1\]"),
        ([tiny.port("X", "FP32", [2])], [Y2], r"declared \[2\]"),
        ([], [Y2], "also needs the input 'X'"),
        ([X2], [tiny.port("Z", "FP32", [-1, 2])], "no output 'Z', only Y"),
        ([{**X2, "required": False}], [Y2], "required tensor"),
        ([{**X2, "kind": "json"}], [Y2], "required tensor"),
    ],
)
def test_a_signature_that_is_not_the_models(
    inputs: list[Any], outputs: list[Any], says: str, tmp_path: Path
) -> None:
    """Is found when the model loads."""
    tiny.save(tiny.identity("FP32"), tmp_path / "m.onnx")
    made = OnnxEngine(tiny.spec(tiny.entry("m.onnx", inputs, outputs)), tmp_path)
    with pytest.raises(ModelUnavailable, match=says):
        made.load()


def test_a_declaration_may_be_narrower(tmp_path: Path) -> None:
    """Four rows, where the model takes any number."""
    tiny.save(tiny.identity("FP32"), tmp_path / "m.onnx")
    ports = [tiny.port("X", "FP32", [4, 2])], [tiny.port("Y", "FP32", [4, 2])]
    engine(tmp_path, tiny.entry("m.onnx", *ports))


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (None, "names no source"),
        ("../m.onnx", "below the models directory"),
        ("/etc/passwd", "below the models directory"),
        ("a/../../m.onnx", "below the models directory"),
        ("a\\m.onnx", "below the models directory"),
        ("nowhere.onnx", "there is no file"),
        ("folder", "no plain file"),
        ("out.onnx", "link out of"),
        ("linked/m.onnx", "link out of"),
        ("around", "there is no file"),
    ],
)
def test_files_are_below_the_models_directory(
    source: str | None, says: str, tmp_path: Path
) -> None:
    """No path and no link leads out, and the card says why the model is not there."""
    models = tmp_path / "models"
    (models / "folder").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    for path in (tmp_path / "m.onnx", tmp_path / "outside" / "m.onnx"):
        tiny.save(tiny.identity("FP32"), path)
    (models / "out.onnx").symlink_to(tmp_path / "m.onnx")
    (models / "linked").symlink_to(tmp_path / "outside")
    (models / "around").symlink_to(models / "around")
    made = OnnxEngine(tiny.spec(tiny.entry(source, [X2], [Y2])), models)
    assert says in (made.missing() or "")
    with pytest.raises(ModelUnavailable, match=says):
        made.load()


def test_a_link_inside_is_welcome(tmp_path: Path) -> None:
    """Aliases are made of them."""
    tiny.save(tiny.identity("FP32"), tmp_path / "v1.onnx")
    (tmp_path / "newest.onnx").symlink_to(tmp_path / "v1.onnx")
    engine(tmp_path, tiny.entry("newest.onnx", [X2], [Y2]))


def test_a_file_may_be_too_large(tmp_path: Path) -> None:
    """The operator's setting wins."""
    tiny.save(tiny.identity("FP32"), tmp_path / "m.onnx")
    document = tiny.entry("m.onnx", [X2], [Y2], params={"bytes_max": 50})
    with pytest.raises(ModelUnavailable, match="more than 50 bytes; CLAWDBOT_MODEL_BYTES_MAX"):
        OnnxEngine(tiny.spec(document), tmp_path).load()


def external(place: str) -> Any:
    """Return a model with weights outside of it, in one of the places where a tensor can be."""
    weight = numpy_helper.from_array(np.ones((1, 2), np.float32), "w")
    external_data_helper.set_external_data(weight, "../../secret")
    weight.ClearField("raw_data")
    add = helper.make_node("Add", ["X", "w"], ["Y"])
    ports: tuple[Any, Any] = {"X": ("FP32", ("n", 2))}, {"Y": ("FP32", ("n", 2))}
    if place == "initializer":
        return tiny.model([add], *ports, [weight])
    constant = helper.make_node("Constant", [], ["w"], value=weight)
    if place == "constant":
        return tiny.model([constant, add], *ports)
    if place == "function":
        proto = tiny.identity("FP32")
        opset = [helper.make_opsetid("", 17)]
        function = helper.make_function("local", "F", ["X"], ["Y"], [constant, add], opset)
        proto.functions.append(function)
        return proto
    inner = helper.make_graph(
        [constant, helper.make_node("Identity", ["w"], ["o"])],
        "inner",
        [],
        [helper.make_tensor_value_info("o", TensorProto.FLOAT, [1, 2])],
    )
    condition = helper.make_tensor("c", TensorProto.BOOL, [], [True])
    branch = helper.make_node("If", ["c"], ["i"], then_branch=inner, else_branch=inner)
    add = helper.make_node("Add", ["X", "i"], ["Y"])
    return tiny.model([branch, add], *ports, [condition])


@pytest.mark.parametrize("place", ["initializer", "constant", "function", "branch"])
def test_weights_in_other_files_are_refused(place: str, tmp_path: Path) -> None:
    """Wherever in the graph they hide: the file would say which file is read."""
    tiny.save(external(place), tmp_path / "m.onnx")
    with pytest.raises(ModelUnavailable, match="weights in other files"):
        OnnxEngine(tiny.spec(tiny.entry("m.onnx", [X2], [Y2])), tmp_path).load()


@pytest.mark.parametrize(
    "data", [b"", b"no model", b"\x08", b"\x3a\xff\xff\xff\xff\x7f", b"\x3b\x3c", b"\xff" * 40]
)
def test_a_damaged_file_is_no_model(data: bytes, tmp_path: Path) -> None:
    """It is refused before the runtime sees it."""
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises(ModelUnavailable, match="no ONNX"):
        OnnxEngine(tiny.spec(tiny.entry("m.onnx", [X2], [Y2])), tmp_path).load()


def test_a_graph_may_be_well_formed_and_senseless(tmp_path: Path) -> None:
    """An operator that nobody knows is the runtime's to refuse."""
    node = helper.make_node("Pickle", ["X"], ["Y"])
    proto = tiny.model([node], {"X": ("FP32", ("n", 2))}, {"Y": ("FP32", ("n", 2))})
    tiny.save(proto, tmp_path / "m.onnx")
    with pytest.raises(ModelUnavailable, match="cannot load"):
        OnnxEngine(tiny.spec(tiny.entry("m.onnx", [X2], [Y2])), tmp_path).load()


def test_nesting_has_an_end() -> None:
    """A graph in an attribute in a graph, for ever, is refused and not followed."""
    inner = b""
    for number in range(3 * onnx_file.GRAPH_DEPTH_MAX):
        tag = (b"\x32", b"\x2a", b"\x0a")[number % 3]  # graph, attribute, node
        inner = tag + _varint(len(inner)) + inner
    with pytest.raises(ModelUnavailable, match="nests too deeply"):
        model_files.check_onnx(b"\x3a" + _varint(len(inner)) + inner)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def test_a_provider_that_is_not_there(tmp_path: Path) -> None:
    """Is a reason not to serve; strict_provider: false takes the others instead."""
    tiny.save(tiny.identity("FP32"), tmp_path / "m.onnx")
    wanted = {"providers": ["QNNExecutionProvider", "CPUExecutionProvider"]}
    strict = OnnxEngine(tiny.spec(tiny.entry("m.onnx", [X2], [Y2], params=wanted)), tmp_path)
    assert "QNNExecutionProvider is not active here" in (strict.missing() or "")
    with pytest.raises(ModelUnavailable, match=r"not active here, only .*CPUExecutionProvider"):
        strict.load()
    lenient = {**wanted, "strict_provider": False}
    made = engine(tmp_path, tiny.entry("m.onnx", [X2], [Y2], params=lenient))
    assert ["CPUExecutionProvider"] == made.session.get_providers()


@pytest.mark.parametrize("providers", ["CPUExecutionProvider", [], [7]])
def test_providers_are_a_list(providers: Any, tmp_path: Path) -> None:
    """Anything else is the catalogue's mistake."""
    tiny.save(tiny.identity("FP32"), tmp_path / "m.onnx")
    document = tiny.entry("m.onnx", [X2], [Y2], params={"providers": providers})
    assert "must be a list" in (OnnxEngine(tiny.spec(document), tmp_path).missing() or "")
