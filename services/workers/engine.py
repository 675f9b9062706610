"""The contract every engine keeps. Implementations live in `engines/`, one library each."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from schemas.catalogue import ModelSpec
from schemas.values import Value


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Request:
    """One inference: named inputs (blobs already fetched into `Binary`) and parameters."""

    inputs: Mapping[str, Value]
    params: Mapping[str, Any] = field(default_factory=dict)
    key: str = ""
    """Names the piece of work, the same for every attempt; empty where nobody keeps a log."""
    is_stopped: Callable[[], bool] = _never
    """Tells whether nobody waits for the answer any more. An engine that works for long asks now
    and then, and raises `Cancelled`."""
    then: Sequence[str] = ()
    """Models that will be wanted next: they are loaded while this one computes."""
    emit: Callable[[Mapping[str, Value]], None] | None = None
    """Takes a part of the answer, from any thread, where the caller wants it in parts. An engine
    whose answer grows hands over what is new as it comes, and returns the whole in any case."""


class AnyEngine:
    """What all engines share: they are made with a model's spec and loaded once.

    Nothing heavier than the standard library may be imported at module level, so that an idle
    worker stays small; import the model library inside `load` (and `missing`).
    """

    packages: ClassVar[tuple[str, ...]] = ()
    """What `load` imports: the worker does so before it measures what the model takes."""

    bounds_threads: ClassVar[bool] = False
    """Whether it keeps `limits.threads` by itself; else that takes a process of its own."""

    def __init__(self, spec: ModelSpec, models_dir: Path) -> None:
        self.spec = spec
        self.models_dir = models_dir

    def missing(self) -> str | None:
        """Return why this model cannot run here (weights, library), or None when it can.

        Cheap: looks for files and packages, loads nothing.
        """
        return None

    def is_uncertain(self) -> bool:
        """Tell whether only loading shows if the model can run here; it is then loaded at start."""
        return False

    def load(self) -> None:
        """Bring the weights into memory.

        Raises:
            ModelUnavailable: The weights are not on this machine.
        """

    def close(self) -> None:
        """Give back what `load` took."""

    def memory(self) -> int | None:
        """Return how many bytes the loaded model takes, on devices of its own too.

        None where only the process as a whole can tell: then what loading added to it is taken.
        """
        return None

    def gpu(self) -> int | None:
        """Return the number of the NVIDIA GPU that loading takes memory of; None for none.

        The worker opens it before it measures what the model takes.

        Raises:
            ModelUnavailable: What is asked for is not here.
        """
        return None

    def is_for_gpu(self) -> bool:
        """Tell whether the weights will lie on a GPU, as far as that is known; loads nothing."""
        return False

    def device_memory(self) -> int | None:
        """Return how many bytes of GPUs the loaded model takes, where it knows better than NVML."""
        return None

    def devices(self) -> tuple[str, ...]:
        """Return what the loaded model really runs on: the words of its library, best first."""
        return ("cpu",)


class Engine(AnyEngine, ABC):
    """Computes on this machine: `infer` is called from one thread at a time."""

    blocking: ClassVar[bool] = True
    """Whether `infer` takes long enough to need its own thread; False only below ~100 us."""

    @abstractmethod
    def infer(self, batch: Sequence[Request]) -> list[Mapping[str, Value]]:
        """Compute the named outputs of each request, in order.

        More than one comes only to a `BatchEngine`.

        Raises:
            InvalidArgument: An input is malformed; terminal, names `inputs.<name>`.
            EngineFailed: The library refused a well-formed input; terminal.
            Cancelled: Nobody waits for the answer any more.
        """

    def warm(self, requests: Sequence[Request]) -> None:
        """Compute requests that nobody waits for, so that the first real one is not slow.

        Raises:
            ClawdbotError: One cannot be computed.
        """
        for request in requests:
            self.infer([request])


class BatchEngine(Engine, ABC):
    """Computes several requests in one call for less than one after the other.

    `infer` gets requests that have the same key. An error is of them all: the batch is halved
    until it is clear whose it is, and the others are computed.
    """

    @abstractmethod
    def batch_key(self, request: Request) -> Hashable | None:
        """Return what requests share that one call may compute; None: this one is alone.

        Cheap: it runs on the event loop.
        """

    @abstractmethod
    def rows(self, request: Request) -> int:
        """Return how many of `rows_max` a request with a key takes."""

    def rows_max(self) -> int:
        """Return how many rows one call may have: the model's `max_batch_size`, or 1.

        An engine whose rows are no tensors' has another number, which no protocol speaks of.
        """
        return self.spec.max_batch_size or 1


class AsyncEngine(AnyEngine, ABC):
    """Waits for somebody else: any number of `answer` are under way at once, on the event loop.

    One that nobody waits for any more is cancelled like any coroutine.
    """

    @abstractmethod
    async def answer(self, request: Request) -> Mapping[str, Value]:
        """Return the named outputs of a request.

        Raises:
            ClawdbotError: It did not work; `retryable` says whether it may later.
        """
