"""The contract every engine keeps. Implementations live in `engines/`, one library each."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from schemas.catalogue import ModelSpec
from schemas.values import Value


@dataclass(frozen=True)
class Request:
    """One inference: named inputs (blobs already fetched into `Binary`) and parameters."""

    inputs: Mapping[str, Value]
    params: Mapping[str, Any] = field(default_factory=dict)


class Engine(ABC):
    """Runs one model on this machine.

    A worker constructs it with the model's spec, calls `load` once, then `infer` from one thread
    at a time. Nothing heavier than the standard library may be imported at module level, so that
    an idle worker stays small; import the model library inside `load` (and `missing`).
    """

    blocking: ClassVar[bool] = True
    """Whether `infer` takes long enough to need its own thread; False only below ~100 us."""

    def __init__(self, spec: ModelSpec, models_dir: Path) -> None:
        self.spec = spec
        self.models_dir = models_dir

    def missing(self) -> str | None:
        """Return why this model cannot run here (weights, library), or None when it can.

        Cheap: looks for files and packages, loads nothing.
        """
        return None

    def load(self) -> None:  # noqa: B027 - most engines need it, the trivial ones do not
        """Bring the weights into memory.

        Raises:
            ModelUnavailable: The weights are not on this machine.
        """

    @abstractmethod
    def infer(self, batch: Sequence[Request]) -> list[Mapping[str, Value]]:
        """Compute the named outputs of each request, in order.

        Raises:
            InvalidArgument: An input is malformed; terminal, names `inputs.<name>`.
            EngineFailed: The library refused a well-formed input; terminal.
        """

    def close(self) -> None:  # noqa: B027 - most engines leave it to the garbage collector
        """Give back what `load` took."""
