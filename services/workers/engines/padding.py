"""Makes inputs of different lengths fit into one call: padded to a bucket, masked, cut back."""

from typing import TYPE_CHECKING, Any

from schemas.errors import InvalidArgument
from schemas.serving import Buckets
from schemas.values import Tensor
from services.workers.engine import Request


if TYPE_CHECKING:
    from numpy.typing import NDArray


def length(buckets: Buckets, request: Request) -> int:
    """Return how long a request is along the padded axis.

    Args:
        buckets: Of a model.
        request: Its inputs are tensors of the declared shapes.

    Raises:
        InvalidArgument: Its inputs differ; names the input.
    """
    found: int | None = None
    for name, padded in buckets.padded.items():
        tensor = request.inputs.get(name)
        if not isinstance(tensor, Tensor):
            continue  # a mask that is to be made
        size = tensor.shape[padded.axis]
        if found is not None and size != found:
            raise InvalidArgument(
                f"'{name}' is {size} long in dimension {padded.axis}, the other inputs are {found}",
                field=f"inputs.{name}",
            )
        found = size
    assert found is not None, "the catalogue pads at least one required input"
    return found


def bucket(buckets: Buckets, size: int) -> int:
    """Return how long a request is computed: the next size, or as it is where it is longer."""
    return next((wanted for wanted in buckets.sizes if wanted >= size), size)


def pad(array: "NDArray[Any]", axis: int, size: int, value: float) -> "NDArray[Any]":
    """Return an array that is `size` long along an axis, with `value` behind what was there."""
    import numpy as np

    missing = size - array.shape[axis]
    if missing <= 0:
        return array
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, missing)
    return np.pad(array, widths, constant_values=value)


def cut(array: "NDArray[Any]", axis: int, size: int) -> "NDArray[Any]":
    """Return the first `size` along an axis."""
    index = (slice(None),) * axis + (slice(size),)
    return array[index]
