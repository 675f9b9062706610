"""Files that are no model, or worse: one for each trick that is refused."""

import io
import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from onnx import FunctionProto, TensorProto, helper
from typing_extensions import override

from schemas.onnx_file import FIELDS_MAX
from tests.support import onnx_models as tiny
from tests.support import torch_programs


class Canary:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @override
    def __reduce__(self) -> tuple[Any, ...]:
        """Run code when it is read."""
        return (Path.touch, (self._path,))


def pickled(canary: Path, protocol: int = 4) -> bytes:
    """Return a pickle that leaves a file when it is read."""
    return pickle.dumps(Canary(canary), protocol)


def torch_file(canary: Path) -> bytes:
    """Return what `torch.save` writes: an archive around a pickle."""
    return archive({"archive/data.pkl": pickled(canary)})


def numpy_file(canary: Path) -> bytes:
    """Return an array of objects, which is a pickle inside."""
    out = io.BytesIO()
    np.save(out, np.array([Canary(canary)], object), allow_pickle=True)
    return out.getvalue()


def archive(files: dict[str, bytes]) -> bytes:
    """Return a zip archive."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as packed:
        for name, data in files.items():
            packed.writestr(name, data)
    return out.getvalue()


def onnx(node: Any = None, weights: list[Any] | None = None, shape: Any = ("n", 2)) -> bytes:
    """Return a model of one node from X to Y."""
    one = node or helper.make_node("Identity", ["X"], ["Y"])
    ports = {"X": ("FP32", shape)}
    found: bytes = tiny.model(
        [one], ports, {"Y": ("FP32", shape)}, weights or []
    ).SerializeToString()
    return found


def external(location: str, where: str = "initializer") -> bytes:
    """Return a model whose weights lie in another file."""
    weight = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    weight.ClearField("float_data")
    weight.data_location = TensorProto.EXTERNAL
    entry = weight.external_data.add()
    entry.key, entry.value = "location", location
    if where == "initializer":
        return onnx(helper.make_node("Mul", ["X", "w"], ["Y"]), [weight])
    return onnx(helper.make_node("Constant", [], ["Y"], value=weight))


def lying_weights(dims: list[int]) -> bytes:
    """Return a model whose weights claim to be larger than they are."""
    weight = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    weight.ClearField("dims")
    weight.dims.extend(dims)
    return onnx(helper.make_node("Mul", ["X", "w"], ["Y"]), [weight])


def nested(depth: int) -> bytes:
    """Return a graph in an attribute of a node in a graph, and so on."""
    found = b""
    for _ in range(depth):
        for tag in (b"\x32", b"\x2a", b"\x0a"):  # attribute.g, node.attribute, graph.node
            found = tag + _varint(len(found)) + found
    return b"\x3a" + _varint(len(found)) + found


def endless_loop() -> bytes:
    """Return a Loop that has neither a trip count nor a condition."""
    body = helper.make_graph([helper.make_node("Identity", ["i"], ["c"])], "body", [], [])
    return onnx(helper.make_node("Loop", ["", "", "X"], ["Y"], body=body))


def calling_itself(through: bool = False) -> bytes:
    """Return a function that calls itself; through a branch of an If, if asked for."""
    call = helper.make_node("F", ["X"], ["Y"], domain="mine")
    if through:
        branch = helper.make_graph([call], "branch", [], [])
        call = helper.make_node("If", ["X"], ["Y"], then_branch=branch, else_branch=branch)
    opset = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    function: FunctionProto = helper.make_function("mine", "F", ["X"], ["Y"], [call], opset)
    graph = tiny.identity("FP32").graph
    graph.node[0].CopyFrom(helper.make_node("F", ["X"], ["Y"], domain="mine"))
    model = helper.make_model(graph, opset_imports=opset, functions=[function])
    found: bytes = model.SerializeToString()
    return found


def crowd() -> bytes:
    """Return a graph of so many empty nodes that nobody should count them."""
    graph = b"\x0a\x00" * (FIELDS_MAX + 1)
    return b"\x3a" + _varint(len(graph)) + graph


def overlong() -> bytes:
    """Return a graph that claims three gigabytes."""
    return b"\x3a" + _varint(3 * 1024**3) + b"\x0a\x00"


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """Return a safetensors file with a header of one's own."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


CONTENTS: dict[str, tuple[str, bytes, str]] = {
    "external data": ("m.onnx", external("weights.bin"), "keeps weights in other files"),
    "external data, up": ("m.onnx", external("../../etc/passwd"), "keeps weights in other files"),
    "external data, absolute": ("m.onnx", external("/etc/passwd"), "keeps weights in other files"),
    "external data in an attribute": (
        "m.onnx",
        external("x", "attribute"),
        "keeps weights in other files",
    ),
    "custom operator": (
        "m.onnx",
        onnx(helper.make_node("Evil", ["X"], ["Y"], domain="com.evil")),
        "'Evil' of 'com.evil' is no standard one",
    ),
    "context of a provider": (
        "m.onnx",
        onnx(helper.make_node("EPContext", ["X"], ["Y"], domain="com.microsoft")),
        "EPContext loads a file of its own",
    ),
    "Python inside": (
        "m.onnx",
        onnx(helper.make_node("PythonOp", ["X"], ["Y"], domain="com.microsoft")),
        "PythonOp runs Python",
    ),
    "a dimension of 2^31": ("m.onnx", onnx(shape=(2**31, 2)), "a dimension is 2147483648"),
    "a negative dimension": ("m.onnx", onnx(shape=(-7, 2)), "a dimension is -7"),
    "weights of 2^31": ("m.onnx", lying_weights([2**31]), "a dimension is 2147483648"),
    "weights below zero": ("m.onnx", lying_weights([-1]), "a dimension is -1"),
    "weights that overflow": (
        "m.onnx",
        lying_weights([2**30, 2**30, 2**30]),
        "claim more elements than they have",
    ),
    "weights of many dimensions": ("m.onnx", lying_weights([1] * 17), "at most 16 dimensions"),
    "graphs in graphs": ("m.onnx", nested(40), "nests too deeply"),
    "a loop without end": ("m.onnx", endless_loop(), "it never ends"),
    "a function that calls itself": ("m.onnx", calling_itself(), "'F' calls itself without end"),
    "the same through a branch": ("m.onnx", calling_itself(through=True), "calls itself"),
    "too many nodes": ("m.onnx", crowd(), "the graph is too large"),
    "three gigabytes, it says": ("m.onnx", overlong(), "it is damaged"),
    "cut off": ("m.onnx", onnx()[:-9], "it is damaged"),
    "nothing": ("m.onnx", b"", "holds no ONNX graph"),
    "text": ("m.onnx", b"hello, this is no model", "no ONNX"),
    "a header without end": (
        "m.safetensors",
        safetensors({}, length=2**63),
        "no sound length",
    ),
    "a header that is cut off": ("m.safetensors", safetensors({}, length=99), "it is cut off"),
    "a header that is no JSON": ("m.safetensors", safetensors(b"{]"), "its header is damaged"),
    "a tensor outside": (
        "m.safetensors",
        safetensors({"w": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}, b"1234"),
        "a tensor lies outside",
    ),
    "an array of objects": ("m.txt", b"\x93NUMPY\x01\x00", "is a NumPy file"),
    "a program": ("m.txt", b"\x7fELF\x02", "is a program"),
    "a program of torch that is none": ("m.pt2", b"\x80\x02.", "is a pickle"),
    "another one": ("m.pt2", b"hello", "is no program of torch.export"),
    "a program of code": (
        "m.pt2",
        torch_programs.changed(
            "graph_module/graph/nodes/0/target", "torch.ops.aten.__class__.__init__"
        ),
        "which is not loaded",
    ),
    "a program that calls the system": (
        "m.pt2",
        torch_programs.changed("graph_module/graph/nodes/0/target", "torch.os.system"),
        "which is not loaded",
    ),
    "a program with compiled code": (
        "m.pt2",
        torch_programs.archive({"data/aotinductor/model/x.so": b"\x7fELF"}),
        "no compiled code, custom objects or pickles",
    ),
    "a program with pickled weights": (
        "m.pt2",
        torch_programs.archive(
            {
                "data/weights/model_weights_config.json": json.dumps(
                    {"config": {"w": {"path_name": "weight_0", "use_pickle": True}}}
                )
            }
        ),
        "is pickled; it must be a plain tensor",
    ),
    "a program that is cut off": ("m.pt2", torch_programs.archive({})[:400], "it is damaged"),
    "a program that unpacks to more than it has": (
        "m.pt2",
        torch_programs.archive({"data/weights/weight_0": bytes(2**27)}, compress=True),
        "holds more than",
    ),
    "an archive": ("m.json", archive({"../../evil": b"x"}), "is an archive"),
}
"""By trick: the file's name, its content, and what is said of it."""

PATHS = (
    "../up.onnx",
    "a/../../up.onnx",
    "/etc/passwd.txt",
    "a//b.onnx",
    "./a.onnx",
    "a/./b.onnx",
    "..\\up.onnx",
    "\\\\host\\share.onnx",
    "C:/x.onnx",
    "%2e%2e/up.onnx",
    "a\0.onnx",
    "a\n.onnx",
    ".hidden.onnx",
    "a/.git/x.txt",
    "",
    "a/",
    "~/x.onnx",
    "ü.onnx",
    "d/" * 8 + "a.onnx",
    "x" * 300 + ".onnx",
    "model.pkl",
    "model.pt",
    "model.bin",
    "model.npy",
    "model.joblib",
    "model.zip",
    "model.so",
    "code.py",
)
"""No path of a model's file."""
