"""Tiny ONNX models, made when a test needs them, and catalogue entries for them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from schemas.catalogue import ModelSpec


TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}


def model(
    nodes: Sequence[Any],
    inputs: Mapping[str, tuple[str, Sequence[Any]]],
    outputs: Mapping[str, tuple[str, Sequence[Any]]],
    weights: Sequence[Any] = (),
) -> Any:
    """Return a model; a dimension that is a word is dynamic."""

    def infos(ports: Mapping[str, tuple[str, Sequence[Any]]]) -> list[Any]:
        return [
            helper.make_tensor_value_info(name, TYPES[datatype], list(shape))
            for name, (datatype, shape) in ports.items()
        ]

    graph = helper.make_graph(list(nodes), "tiny", infos(inputs), infos(outputs), list(weights))
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8)


def identity(datatype: str, shape: Sequence[Any] = ("n", 2)) -> Any:
    """Return a model whose output Y is its input X."""
    node = helper.make_node("Identity", ["X"], ["Y"])
    return model([node], {"X": (datatype, shape)}, {"Y": (datatype, shape)})


def doubling() -> Any:
    """Return a model of two FP32 inputs [n, 3]: SUM = A + B, TWICE = 2 A."""
    ports = {"A": ("FP32", ("n", 3)), "B": ("FP32", ("n", 3))}
    two = helper.make_tensor("two", TensorProto.FLOAT, [1], [2.0])
    nodes = [
        helper.make_node("Add", ["A", "B"], ["SUM"]),
        helper.make_node("Mul", ["A", "two"], ["TWICE"]),
    ]
    return model(nodes, ports, {"SUM": ("FP32", ("n", 3)), "TWICE": ("FP32", ("n", 3))}, [two])


def picky() -> Any:
    """Return a model that fails where INDEX is outside of 0 to 9: VALUE = 10 * INDEX, [n, 1]."""
    table = helper.make_tensor("table", TensorProto.INT64, [10], [10 * n for n in range(10)])
    node = helper.make_node("Gather", ["table", "INDEX"], ["VALUE"])
    ports = {"INDEX": ("INT64", ("n", 1))}
    return model([node], ports, {"VALUE": ("INT64", ("n", 1))}, [table])


def scaling(number: int, side: int) -> Any:
    """Return a model of side * side weights, FP32: Y = number * sum(X), [n, side] both."""
    weights = numpy_helper.from_array(np.full((side, side), number, np.float32), "w")
    node = helper.make_node("MatMul", ["X", "w"], ["Y"])
    ports = {"X": ("FP32", ("n", side))}, {"Y": ("FP32", ("n", side))}
    return model([node], *ports, [weights])


def adding() -> Any:
    """Return a model with a state [n, 2]: SUM = TOTAL_OUT = TOTAL + X."""
    shape = ("FP32", ("n", 2))
    nodes = [
        helper.make_node("Add", ["TOTAL", "X"], ["TOTAL_OUT"]),
        helper.make_node("Identity", ["TOTAL_OUT"], ["SUM"]),
    ]
    return model(nodes, {"X": shape, "TOTAL": shape}, {"SUM": shape, "TOTAL_OUT": shape})


def told() -> Any:
    """Return a model of a sequence that forgets by itself: SUM = TOTAL_OUT = TOTAL (1 - START) + X.

    SEEN [n, 4] is START, END, READY and ID as it was told.
    """
    ports = {
        **dict.fromkeys(("X", "TOTAL"), ("FP32", ("n", 2))),
        "START": ("FP32", ("n", 1)),
        "END": ("INT32", ("n", 1)),
        "READY": ("BOOL", ("n", 1)),
        "ID": ("INT64", ("n", 1)),
    }
    nodes = [
        helper.make_node("Sub", ["one", "START"], ["goes_on"]),
        helper.make_node("Mul", ["TOTAL", "goes_on"], ["before"]),
        helper.make_node("Add", ["before", "X"], ["SUM"]),
        helper.make_node("Identity", ["SUM"], ["TOTAL_OUT"]),
        *(
            helper.make_node("Cast", [name], [f"{name}_"], to=TensorProto.FLOAT)
            for name in ("END", "READY", "ID")
        ),
        helper.make_node("Concat", ["START", "END_", "READY_", "ID_"], ["SEEN"], axis=1),
    ]
    one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
    outputs = dict.fromkeys(("SUM", "TOTAL_OUT"), ("FP32", ("n", 2)))
    return model(nodes, ports, {**outputs, "SEEN": ("FP32", ("n", 4))}, [one])


def counting() -> Any:
    """Return a model that counts to TIMES, one by one: COUNT; both [1], a million take a second."""
    scalar = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Add", ["count", "one"], ["next"]),
            helper.make_node("Identity", ["on"], ["still"]),
        ],
        "body",
        [
            scalar("step", TensorProto.INT64, []),
            scalar("on", TensorProto.BOOL, []),
            scalar("count", TensorProto.INT64, [1]),
        ],
        [scalar("still", TensorProto.BOOL, []), scalar("next", TensorProto.INT64, [1])],
        [helper.make_tensor("one", TensorProto.INT64, [1], [1])],
    )
    nodes = [
        helper.make_node("Squeeze", ["TIMES"], ["times"]),
        helper.make_node("Loop", ["times", "", "zero"], ["COUNT"], body=body),
    ]
    zero = helper.make_tensor("zero", TensorProto.INT64, [1], [0])
    return model(nodes, {"TIMES": ("INT64", (1,))}, {"COUNT": ("INT64", (1,))}, [zero])


def iris() -> Any:
    """Return the model of docs/inference.md: X [n, 4] to probabilities [n, 3]."""
    rows = [[1.0, 0.0, 0.0], [0.5, 0.0, 0.0], [-2.0, 0.0, 1.0], [-2.0, 0.0, 1.0]]
    flat = [number for row in rows for number in row]
    weights = helper.make_tensor("w", TensorProto.FLOAT, [4, 3], flat)
    nodes = [
        helper.make_node("MatMul", ["X", "w"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
    ]
    outputs = {"probabilities": ("FP32", ("n", 3))}
    return model(nodes, {"X": ("FP32", ("n", 4))}, outputs, [weights])


def restless() -> Any:
    """Return a model that turns ROUNDS times, and takes SIZE * 4 bytes; DONE is SIZE. All [1]."""
    body = helper.make_graph(
        [helper.make_node("Identity", [name], [f"{name}_out"]) for name in ("go", "state")],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, []),
        ],
        [
            helper.make_tensor_value_info("go_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state_out", TensorProto.FLOAT, []),
        ],
    )
    one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
    nodes = [
        helper.make_node("ConstantOfShape", ["SIZE"], ["ones"], value=one),
        helper.make_node("ReduceSum", ["ones"], ["sum"], keepdims=0),
        helper.make_node("Loop", ["ROUNDS", "", "sum"], ["turned"], body=body),
        helper.make_node("Reshape", ["turned", "shape"], ["DONE"]),
    ]
    shape = helper.make_tensor("shape", TensorProto.INT64, [1], [1])
    ports = {"ROUNDS": ("INT64", (1,)), "SIZE": ("INT64", (1,))}
    return model(nodes, ports, {"DONE": ("FP32", (1,))}, [shape])


def save(proto: Any, path: Path) -> None:
    """Write a model's file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(proto.SerializeToString())


def port(tensor: str, datatype: str, shape: Sequence[int]) -> dict[str, Any]:
    """Return a port of a catalogue entry."""
    return {
        "name": tensor.lower(),
        "tensor": tensor,
        "kind": "tensor",
        "datatype": datatype,
        "shape": list(shape),
    }


def entry(
    source: str | None, inputs: Sequence[Any], outputs: Sequence[Any], **rest: Any
) -> dict[str, Any]:
    """Return a catalogue entry of the `onnx` engine."""
    return {
        "modality": "text",
        "engine": "onnx",
        "source": source,
        "inputs": list(inputs),
        "outputs": list(outputs),
        "accepts": [],
        **rest,
    }


def stateful(folder: Path) -> dict[str, dict[str, Any]]:
    """Write the models that keep a state, and return their catalogue entries."""
    save(adding(), folder / "adding.onnx")
    save(told(), folder / "told.onnx")
    return {
        "adding": entry(
            "adding.onnx",
            [port("X", "FP32", [-1, 2]), port("TOTAL", "FP32", [-1, 2])],
            [port("SUM", "FP32", [-1, 2]), port("TOTAL_OUT", "FP32", [-1, 2])],
            max_batch_size=8,
            state=[{"input": "total", "output": "total_out"}],
        ),
        "told": entry(
            "told.onnx",
            [
                *(port(name, "FP32", [-1, 2]) for name in ("X", "TOTAL")),
                port("START", "FP32", [-1, 1]),
                port("END", "INT32", [-1, 1]),
                port("READY", "BOOL", [-1, 1]),
                port("ID", "INT64", [-1, 1]),
            ],
            [
                *(port(name, "FP32", [-1, 2]) for name in ("SUM", "TOTAL_OUT")),
                port("SEEN", "FP32", [-1, 4]),
            ],
            max_batch_size=8,
            state=[{"input": "total", "output": "total_out"}],
            controls={"start": "start", "end": "end", "ready": "ready", "correlation": "id"},
        ),
    }


def entries(folder: Path) -> dict[str, dict[str, Any]]:
    """Write every tiny model below a folder, and return their catalogue entries."""
    save(doubling(), folder / "doubling.onnx")
    save(picky(), folder / "picky" / "1.onnx")
    save(restless(), folder / "restless.onnx")
    save(counting(), folder / "counting.onnx")
    rows = [-1, 3]
    found = {
        **stateful(folder),
        "doubling": entry(
            "doubling.onnx",
            [port("A", "FP32", rows), port("B", "FP32", rows)],
            [port("SUM", "FP32", rows), port("TWICE", "FP32", rows)],
            max_batch_size=8,
            version="3",
        ),
        "picky": entry(
            "picky/1.onnx",
            [port("INDEX", "INT64", [-1, 1])],
            [port("VALUE", "INT64", [-1, 1])],
            max_batch_size=16,
        ),
        "restless": entry(
            "restless.onnx",
            [port("ROUNDS", "INT64", [1]), port("SIZE", "INT64", [1])],
            [port("DONE", "FP32", [1])],
            isolation="process",
            limits={"memory": "200MiB"},
            timeout_s=3,
        ),
        "of/two.words": entry(
            "doubling.onnx",
            [port("A", "FP32", rows), port("B", "FP32", rows)],
            [port("SUM", "FP32", rows), port("TWICE", "FP32", rows)],
        ),
        "counting": entry(
            "counting.onnx", [port("TIMES", "INT64", [1])], [port("COUNT", "INT64", [1])]
        ),
        "absent": entry("absent.onnx", [port("X", "FP32", [2])], [port("Y", "FP32", [2])]),
    }
    for datatype in TYPES:
        name = f"same-{datatype.lower()}"
        save(identity(datatype), folder / f"{name}.onnx")
        found[name] = entry(
            f"{name}.onnx", [port("X", datatype, [-1, 2])], [port("Y", datatype, [-1, 2])]
        )
    return found


def spec(document: Mapping[str, Any]) -> ModelSpec:
    """Return a catalogue entry as the worker has it."""
    return ModelSpec.model_validate(document)


__all__ = [
    "TensorProto",
    "doubling",
    "entries",
    "entry",
    "helper",
    "identity",
    "model",
    "onnx",
    "picky",
    "port",
    "spec",
]
