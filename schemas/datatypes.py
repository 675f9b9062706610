"""What other libraries call the datatypes of the Open Inference Protocol: names, no library."""

NUMPY = {
    "BOOL": "?",
    "UINT8": "u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
"""Numbers by datatype, as numpy takes them; it has no BF16."""
STRUCT = {
    "BOOL": "?",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
}
"""Numbers by datatype, as `struct` and `array` of the standard library take them."""
ONNX = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
"""Datatypes by what ONNX Runtime says of a model's inputs and outputs; BF16 apart."""
TORCH = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
}
"""Datatypes by torch's names."""

_OF_ARRAYS = {"b1": "BOOL", **{code.lstrip("<"): name for name, code in NUMPY.items()}}


def of_array(code: str) -> str | None:
    """Return the datatype of a numpy array of numbers, by its `dtype.str`.

    None for anything else; big-endian numbers are not ours.
    """
    return _OF_ARRAYS.get(code.lstrip("<|"))
