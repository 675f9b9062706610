"""Writes the answer of an inference: JSON, and behind it the binary data."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from schemas import tensors
from schemas.catalogue import Port
from schemas.errors import EngineFailed, InvalidArgument
from schemas.pieces import Body, Pieces, runs
from schemas.values import Binary, Tensor, Value
from services.gateway.inference import elements
from services.gateway.inference.asks import Wanted, about
from services.gateway.inference.classes import classified
from services.gateway.inference.regions import NONE, Regions


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
    head: Mapping[str, Any],
    wanted: Sequence[Wanted],
    outputs: Mapping[str, Value],
    regions: Regions = NONE,
) -> tuple[Body, int | None]:
    """Return a body, and how much of it is JSON; None when all of it is.

    Args:
        head: The answer's fields besides the outputs.
        wanted: Which outputs, in which order and form.
        outputs: What the model gave, by port.
        regions: Where outputs go that are wanted in shared memory.

    Raises:
        InvalidArgument: JSON cannot say an output, or it does not fit into its region.
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
        if item.place is not None:
            put(tensor, item, regions)  # Triton says nothing more; its C++ client trips over it
        elif item.binary:
            entry["parameters"] = {"binary_data_size": len(tensor.data)}
            blobs.append(tensor.data)
        else:
            try:
                entry["data"] = elements.to_json(tensor)
            except InvalidArgument as error:
                raise InvalidArgument(f"output '{name}': {error.message}") from error
        described.append(entry)
    text = orjson.dumps({**head, "outputs": described})
    if not any(item.binary and item.place is None for item in wanted):
        return text, None
    pieces = tuple(runs([text, *blobs]))
    return pieces[0] if len(pieces) == 1 else Pieces(pieces), len(text)


def put(tensor: Tensor, wanted: Wanted, regions: Regions) -> dict[str, Any]:
    """Put an output into shared memory; return the parameters that say so.

    Raises:
        InvalidArgument: It does not fit.
        NotFound: The region is gone.
    """
    assert wanted.place is not None, "it is wanted in shared memory"
    with about(wanted.port.tensor_name, "output"):
        regions.write(wanted.place, tensor.data)
    return wanted.place.parameters(len(tensor.data))
