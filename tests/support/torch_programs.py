"""Archives of torch.export, made without torch."""

import io
import json
import pickle
import zipfile
from collections.abc import Mapping
from typing import Any


TUPLE = {"type": "builtins.tuple", "context": "null", "children_spec": []}
LEAF: dict[str, Any] = {"type": None, "context": None, "children_spec": []}
PROGRAM: dict[str, Any] = {
    "graph_module": {
        "graph": {
            "inputs": [{"as_tensor": {"name": "x"}}],
            "outputs": [{"as_tensor": {"name": "mul"}}],
            "nodes": [
                {
                    "target": "torch.ops.aten.mul.Tensor",
                    "inputs": [{"name": "self", "arg": {"as_tensor": {"name": "x"}}, "kind": 1}],
                    "outputs": [{"as_tensor": {"name": "mul"}}],
                    "metadata": {"stack_trace": 'File "/home/somebody/secret.py"'},
                    "name": "mul",
                }
            ],
            "tensor_values": {
                "x": {
                    "dtype": 7,
                    "sizes": [{"as_expr": {"expr_str": "Symbol('s77', integer=True)"}}],
                }
            },
        },
        "signature": {"input_specs": [], "output_specs": []},
        "module_call_graph": [
            {
                "fqn": "",
                "signature": {
                    "in_spec": json.dumps([1, {**TUPLE, "children_spec": [LEAF]}]),
                    "out_spec": json.dumps([1, LEAF]),
                    "forward_arg_names": ["x"],
                },
            }
        ],
        "metadata": {},
        "treespec_namedtuple_fields": {},
    },
    "range_constraints": {"s77": {"min_val": 0, "max_val": None}},
    "verifiers": ["TRAINING"],
    "torch_version": "2.13.0+cpu",
    "guards_code": ["__import__('os').system('true')"],
}
EMPTY = json.dumps({"config": {}})
FILES: dict[str, str | bytes] = {
    "archive_format": "pt2",
    "archive_version": "0",
    "byteorder": "little",
    ".data/version": "6\n",
    "data/weights/model_weights_config.json": EMPTY,
    "data/constants/model_constants_config.json": EMPTY,
    "data/sample_inputs/model.pt": pickle.dumps([1]),
    "models/model.json": json.dumps(PROGRAM),
}


def archive(
    changes: Mapping[str, str | bytes | None], root: str = "m", *, compress: bool = False
) -> bytes:
    """Return an archive; None leaves a file out."""
    buffer = io.BytesIO()
    how = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(buffer, "w", how) as written:
        for name, content in {**FILES, **changes}.items():
            if content is not None:
                written.writestr(f"{root}/{name}", content)
    return buffer.getvalue()


def changed(path: str, value: Any) -> bytes:
    """Return an archive whose program differs at one place."""
    program = json.loads(json.dumps(PROGRAM))
    *steps, last = path.split("/")
    place = program
    for step in steps:
        place = place[int(step) if isinstance(place, list) else step]
    place[int(last) if isinstance(place, list) else last] = value
    return archive({"models/model.json": json.dumps(program)})
