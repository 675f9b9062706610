"""Ranks items by how near they are to a query."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from typing_extensions import override

from schemas.errors import InvalidArgument
from schemas.values import Value
from services.workers.engine import Engine, Request
from services.workers.engines import fields


if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TOP = 5
TOP_MAX = 1_024


class RankingEngine(Engine):
    """Output `ranked` lists the items nearest to the query, best first.

    Each is {rank, index, score, name}: `rank` from 1, `index` the row of `items`, `score` the
    cosine in [-1, 1], `name` from the optional input `names`. Several query rows are averaged.

    Params: `top`, how many to keep.
    """

    @override
    def missing(self) -> str | None:
        return fields.missing_package("numpy")

    @override
    def infer(self, batch: Sequence[Request]) -> list[Mapping[str, Value]]:
        return [{"ranked": _rank(request)} for request in batch]


def _rank(request: Request) -> list[dict[str, Value]]:
    top = int(fields.number(request, "top", default=TOP, low=1, high=TOP_MAX))
    query, items = (_unit(request, name) for name in ("query", "items"))
    if query.shape[1] != items.shape[1]:
        raise InvalidArgument(
            f"'items' have {items.shape[1]} dimensions, 'query' has {query.shape[1]}",
            field="inputs.items",
        )
    names = request.inputs.get("names")
    if names is not None and not (isinstance(names, list) and len(names) == len(items)):
        raise InvalidArgument(
            f"'names' must be a list of {len(items)}, one for each item", field="inputs.names"
        )
    scores = items @ query.mean(axis=0)
    order = (-scores).argsort(kind="stable")[:top]
    return [
        {
            "rank": rank,
            "index": int(index),
            "score": round(float(scores[index]), 4),
            "name": names[index] if names is not None else str(index),
        }
        for rank, index in enumerate(order, start=1)
    ]


def _unit(request: Request, name: str) -> "NDArray[np.float32]":
    """Return one input as float32 [row, dimension], each row of length one."""
    import numpy as np

    tensor = fields.tensor(request, name)
    rows = np.frombuffer(tensor.data, "<f4").reshape(tensor.shape)
    if not np.isfinite(rows).all():
        raise InvalidArgument(f"'{name}' holds values that are not numbers", field=f"inputs.{name}")
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: NDArray[np.float32] = rows / np.maximum(norms, np.float32(1e-12))
    return unit
