"""Writes the answer of an inference: JSON, and behind it the binary data."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from schemas import tensors
from schemas.catalogue import Port
from schemas.errors import EngineFailed, InvalidArgument
from schemas.values import Binary, Tensor, Value
from services.gateway.inference import elements
from services.gateway.inference.asks import Wanted, about
from services.gateway.inference.classes import classified


def tensor_of(outputs: Mapping[str, Value], wanted: Wanted) -> Tensor:
    """Return an output as it is wanted: as a tensor, or the classes of one.

    Raises:
        EngineFailed: The model did not give it.
        InvalidArgument: It has no classes.
    """
    found = _whole(outputs, wanted.port)
    if not wanted.classes:
        return found
    with about(wanted.port.tensor_name, "output"):
        return classified(found, wanted.port, wanted.classes, rows=wanted.rows)


def _whole(outputs: Mapping[str, Value], port: Port) -> Tensor:
    if port.name not in outputs:
        raise EngineFailed(f"the model gave no '{port.tensor_name}'")
    value = outputs[port.name]
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Binary):
        item = value.data
    elif port.kind == "text":
        item = str(value).encode()
    else:
        item = orjson.dumps(value)
    return Tensor(datatype=tensors.BYTES, shape=(1,), data=tensors.pack([item]))


def encode(
    head: Mapping[str, Any], wanted: Sequence[Wanted], outputs: Mapping[str, Value]
) -> tuple[bytes, int | None]:
    """Return a body, and how much of it is JSON; None when all of it is.

    Args:
        head: The answer's fields besides the outputs.
        wanted: Which outputs, in which order and form.
        outputs: What the model gave, by port.

    Raises:
        InvalidArgument: JSON cannot say an output.
    """
    described: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for item in wanted:
        tensor, name = tensor_of(outputs, item), item.port.tensor_name
        entry: dict[str, Any] = {
            "name": name,
            "datatype": tensor.datatype,
            "shape": list(tensor.shape),
        }
        if item.binary:
            entry["parameters"] = {"binary_data_size": len(tensor.data)}
            blobs.append(tensor.data)
        else:
            try:
                entry["data"] = elements.to_json(tensor)
            except InvalidArgument as error:
                raise InvalidArgument(f"output '{name}': {error.message}") from error
        described.append(entry)
    text = orjson.dumps({**head, "outputs": described})
    if not any(item.binary for item in wanted):
        return text, None
    return b"".join([text, *blobs]), len(text)
