"""Archives of torch.export: what may be loaded of them, found out without torch."""

import io
import json
import zipfile
from typing import Any

import pytest

from schemas.errors import ModelUnavailable
from schemas.pt2 import check, sanitized
from tests.support.torch_programs import LEAF, PROGRAM, TUPLE, archive, changed


def refused(data: bytes) -> None:
    """Raise what both say: who pushes it, and who loads it."""
    with pytest.raises(ModelUnavailable) as pushed:
        check(data)
    with pytest.raises(ModelUnavailable) as loaded:
        sanitized(data, 10**6)
    assert pushed.value.message == loaded.value.message
    raise loaded.value


def test_what_is_harmless_is_kept() -> None:
    """Graph, names and shapes; without stack traces, guards and pickled samples."""
    with zipfile.ZipFile(io.BytesIO(sanitized(archive({}), 10**6))) as found:
        program = json.loads(found.read("model/models/model.json"))
        assert b"" == found.read("model/data/sample_inputs/model.pt")
    graph = program["graph_module"]["graph"]
    assert "torch.ops.aten.mul.Tensor" == graph["nodes"][0]["target"]
    assert ({}, []) == (graph["nodes"][0]["metadata"], program["guards_code"])
    assert PROGRAM["graph_module"]["graph"]["tensor_values"] == graph["tensor_values"]


NODE = "graph_module/graph/nodes/0"
CALL = "graph_module/module_call_graph/0/signature"
SIZE = "graph_module/graph/tensor_values/x/sizes/0/as_expr/expr_str"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (f"{NODE}/target", "torch.os.system"),
        (f"{NODE}/target", "torch.ops.aten.from_file.default"),
        (f"{NODE}/target", "torch.ops.load_library"),
        (f"{NODE}/target", "torch.ops.aten.mul.Tensor.__class__"),
        (f"{NODE}/target", "torch.ops.aten.__class__.mro"),
        (f"{NODE}/target", "torch.ops.aten.mul.__init__"),
        (f"{NODE}/target", "_operator.attrgetter"),
        (f"{NODE}/target", "#custom.op"),
        (f"{NODE}/target", "torch.hub.load"),
        (f"{NODE}/name", "x): __import__('os').system('true')  #"),
        (f"{NODE}/inputs/0/name", "a b"),
        (f"{NODE}/inputs/0/arg", {"as_operator": "torch.os.system"}),
        (f"{NODE}/inputs/0/arg", {"as_string": "'); import os #\n"}),
        (f"{NODE}/inputs/0/arg", {"as_custom_obj": {"name": "o", "class_fqn": "a b()"}}),
        (SIZE, "__import__('os').system('true')"),
        (SIZE, "Symbol('s1').__class__"),
        (SIZE, "(lambda: 1)()"),
        (SIZE, "Pow(Integer(9), Integer(999999999))"),
        (SIZE, "9**9**9**9"),
        (SIZE, "Symbol('os')"),
        (SIZE, "1" * 5000 + "'"),
        (f"{CALL}/forward_arg_names", ["x=__import__('os')"]),
        (f"{CALL}/in_spec", json.dumps([1, {**TUPLE, "type": "collections.defaultdict"}])),
        (f"{CALL}/in_spec", json.dumps([1, {**TUPLE, "context": '{"__enum__": true}'}])),
        (f"{CALL}/in_spec", json.dumps([1, {**TUPLE, "context": '["a\'+x"]'}])),
        (f"{CALL}/out_spec", json.dumps(["1", LEAF])),
        ("range_constraints", {"u99999999999": {"min_val": 0, "max_val": 1}}),
        ("graph_module/signature/input_specs", [{"parameter_name": 'l"+exit()'}]),
        ("verifiers", ["a b"]),
        ("graph_module/module_call_graph", 7),
        ("graph_module", None),
    ],
)  # fmt: skip
def test_what_could_run_code_is_refused(path: str, value: Any) -> None:
    """Wherever torch would look something up, evaluate it, or write it into source."""
    with pytest.raises(ModelUnavailable):
        refused(changed(path, value))


@pytest.mark.parametrize(
    "text",
    [
        "s0 + 1",
        "Mul(Integer(8), Symbol('s23', positive=True, integer=True), Symbol('s27', integer=True))",
        "Min(Integer(8), Mul(Integer(8), Symbol('s23', positive=True, integer=True)))",
        "Add(Pow(Symbol('s1', positive=True), Integer(2)), Integer(-1))",
        "FloorDiv(Symbol('s1', integer=True), Integer(2))",
    ],
)
def test_shapes(text: str) -> None:
    """Sums, products, quotients and bounds of dimensions."""
    sanitized(changed(SIZE, text), 10**6)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("data/aotinductor/model/model.so", b"\x7fELF", "no compiled code"),
        ("data/constants/custom_obj_0", b"", "custom objects"),
        ("data/constants/opaque_obj_0", b"", "custom objects"),
        ("data/weights/model.pt", b"", "pickles"),
        ("data/weights/../../x", b"", "pickles"),
        ("models/other.json", b"{}", "pickles"),
        ("models/model.json", None, "does not hold"),
        ("models/model.json", b"{", "malformed"),
        ("models/model.json", b"[]", "malformed"),
        ("data/weights/model_weights_config.json", None, "does not hold"),
        (
            "data/weights/model_weights_config.json",
            json.dumps({"config": {"w": {"path_name": "weight_0", "use_pickle": True}}}),
            "is pickled",
        ),
        (
            "data/constants/model_constants_config.json",
            json.dumps({"config": {"w": {"path_name": "tensor_0", "use_pickle": 1}}}),
            "is pickled",
        ),
    ],
)
def test_files_that_are_not_loaded(name: str, content: Any, says: str) -> None:
    """Are named, with what may be in such an archive."""
    with pytest.raises(ModelUnavailable, match=says):
        refused(archive({name: content}))


def test_samples_are_never_unpickled() -> None:
    """They are left out, whatever they are."""
    found = sanitized(
        archive({"data/sample_inputs/model.pt": b"cos\nsystem\n(S'true'\ntR."}), 10**6
    )
    assert b"cos\nsystem" not in found


def test_one_folder_and_each_file_once() -> None:
    """Readers differ in which of two they take."""
    buffer = io.BytesIO(archive({}))
    with zipfile.ZipFile(buffer, "a") as written, pytest.warns(UserWarning, match="Duplicate"):
        written.writestr("m/byteorder", "big")
    with pytest.raises(ModelUnavailable, match="one file twice"):
        refused(buffer.getvalue())
    buffer = io.BytesIO(archive({}))
    with zipfile.ZipFile(buffer, "a") as written:
        written.writestr("n/extra/x", "big")
    with pytest.raises(ModelUnavailable, match="two folders"):
        refused(buffer.getvalue())


@pytest.mark.parametrize("data", [b"", b"no zip", b"PK\x05\x06" + bytes(18)])
def test_a_damaged_file(data: bytes) -> None:
    """Is no archive."""
    with pytest.raises(ModelUnavailable):
        refused(data)


def test_an_archive_may_be_too_large_unpacked() -> None:
    """Whatever its own size is."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as written:
        written.writestr("m/data/weights/weight_0", bytes(10**6))
    assert len(buffer.getvalue()) < 10_000
    with pytest.raises(ModelUnavailable, match="more than 100000 bytes"):
        sanitized(buffer.getvalue(), 100_000)
