"""How the answer of one request grew: its responses, by their index, for the statistics.

Only of models that may answer in parts. A part is a response; what the end brings is another one,
empty where every output was in a part before. A whole answer is one response.

Source: `response_stats` of Triton's statistics extension.
"""

import asyncio
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace

from schemas.errors import Cancelled
from schemas.values import Value
from services.workers.engine import Request
from services.workers.unlogged import Send


RESPONSES_MAX = 128
"""Responses of a request that are told apart; later ones are counted with the last of them."""


class Growth:
    """Takes note of the responses of one request.

    Times are nanoseconds of `time.perf_counter_ns`.
    """

    def __init__(self) -> None:
        self._there: list[int] = []
        """When each part came from the engine."""
        self._output_ns: list[int] = []
        """What it took to hand each over, and to send it."""
        self._sent = 0
        self._names: set[str] = set()

    def watched(self, request: Request) -> Request:
        """Return a request whose parts are noted as the engine gives them, in whatever thread."""
        emit = request.emit
        if emit is None:
            return request

        def noted(outputs: Mapping[str, Value]) -> None:
            there = time.perf_counter_ns()
            emit(outputs)
            self._names |= outputs.keys()
            self._output_ns.append(time.perf_counter_ns() - there)
            self._there.append(there)

        return replace(request, emit=noted)

    def sending(self, send: Send) -> Send:
        """Return what sends parts, one after the other, and notes how long it takes."""

        async def noted(outputs: Mapping[str, Value], headers: dict[str, str]) -> None:
            begun = time.perf_counter_ns()
            await send(outputs, headers)
            self._output_ns[self._sent] += time.perf_counter_ns() - begun
            self._sent += 1

        return noted

    def answered(
        self, outputs: Mapping[str, Value], begun: float, there: int, over: int
    ) -> Iterator[tuple[int, dict[str, float]]]:
        """Yield index and nanoseconds by figure of each response of an answer.

        Args:
            outputs: The whole answer.
            begun: When the engine began.
            there: When it was done.
            over: When the answer was on its way.
        """
        yield from self._parts(begun)
        index, infer_ns = len(self._there), there - self._last(begun)
        if index and outputs.keys() <= self._names:
            yield _place(index), {"compute_infer": infer_ns, "empty_response": infer_ns}
        else:
            yield _place(index), _computed("success", infer_ns, over - there)

    def failed(
        self, error: BaseException | None, begun: float, over: int
    ) -> Iterator[tuple[int, dict[str, float]]]:
        """Yield the same of a request that failed, or that nobody waited for any more.

        Args:
            error: Why.
            begun: When the engine began, or might have.
            over: When it failed.
        """
        yield from self._parts(begun)
        index = len(self._there)
        if isinstance(error, Cancelled | asyncio.CancelledError):
            yield _place(index), {"cancel": 0}  # there is nothing to clean up after it
        else:
            yield _place(index), _computed("fail", over - self._last(begun), 0)

    def _parts(self, begun: float) -> Iterator[tuple[int, dict[str, float]]]:
        before = begun
        for index, (there, output_ns) in enumerate(zip(self._there, self._output_ns, strict=False)):
            yield _place(index), _computed("success", there - before, output_ns)
            before = there

    def _last(self, begun: float) -> float:
        return self._there[-1] if self._there else begun


def _computed(end: str, infer_ns: float, output_ns: float) -> dict[str, float]:
    return {"compute_infer": infer_ns, "compute_output": output_ns, end: infer_ns + output_ns}


def _place(index: int) -> int:
    return min(index, RESPONSES_MAX - 1)
