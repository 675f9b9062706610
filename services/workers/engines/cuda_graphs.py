"""Calls of a module on an NVIDIA GPU, recorded once for each shape and replayed.

A small model on a large GPU waits for Python to launch its kernels. A recorded call is one launch.

Source: PyTorch, `torch.cuda.CUDAGraph`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from services.telemetry import get_logger


GRAPHS_MAX = 32
"""Shapes that are recorded for one model; calls of others are made as ever."""
_WARM_CALLS = 3
log = get_logger()


@dataclass(frozen=True)
class _Graph:
    """A recorded call: it reads these tensors and writes those."""

    graph: Any
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]


class Graphs:
    """Calls a module by replaying.

    Rows are padded up to halves of halves of the most, so that few calls are recorded. A module
    that cannot be recorded, as it asks the processor what to do next, is called as ever.

    Args:
        call: Takes tensors of the device by name, returns tensors by name.
        device: Where they are.
        rows_max: Most rows, the first dimension of every input and output; 0 if there are none.
    """

    def __init__(
        self, call: Callable[[Mapping[str, Any]], Mapping[str, Any]], device: str, rows_max: int
    ) -> None:
        self._call = call
        self._device = device
        self._rows_max = rows_max
        self._graphs: dict[tuple[Any, ...], _Graph | None] = {}
        self._pool: Any = None
        """Memory that all graphs share: one is replayed at a time."""

    def __call__(self, feeds: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what the module gives for tensors of the processor; on the device."""
        rows = next(iter(feeds.values())).shape[0] if self._rows_max else 0
        padded = self._padded(rows)
        shapes = {
            name: (padded, *item.shape[1:]) if self._rows_max else tuple(item.shape)
            for name, item in feeds.items()
        }
        key = tuple(shapes.values())
        if key not in self._graphs and len(self._graphs) < GRAPHS_MAX:
            self._graphs[key] = self._record(feeds, shapes)
        graph = self._graphs.get(key)
        if graph is None:
            return self._call({name: item.to(self._device) for name, item in feeds.items()})
        for name, item in feeds.items():
            place = graph.inputs[name]
            (place[:rows] if self._rows_max else place).copy_(item, non_blocking=True)
        graph.graph.replay()
        if not self._rows_max:
            return graph.outputs
        return {name: item[:rows] for name, item in graph.outputs.items()}

    def _padded(self, rows: int) -> int:
        size = self._rows_max
        while size > 1 and -(-size // 2) >= rows:
            size = -(-size // 2)
        return size

    def _record(
        self, feeds: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
    ) -> _Graph | None:
        """Record a call; None where the module cannot be recorded."""
        import torch

        inputs = {
            name: torch.zeros(shapes[name], dtype=item.dtype, device=self._device)
            for name, item in feeds.items()
        }
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(_WARM_CALLS):  # libraries choose their kernels, and take their room
                self._call(inputs)
        torch.cuda.current_stream(self._device).wait_stream(stream)
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                outputs = self._call(inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            # torch leaves the pool open, and would never give back any memory again
            torch._C._cuda_endAllocateToPool(stream.device_index, self._pool)  # noqa: SLF001
            log.warning("cuda_graph_not_recorded", shapes=dict(shapes), error=str(error))
            return None
        return _Graph(graph, inputs, outputs)
