"""How a worker is to serve one model: what it computes first, what is padded, what it may take."""

from typing import Annotated, Any

from pydantic import Field, model_validator

from schemas.message import UserInput
from schemas.tensors import RANK_MAX


WARM_UPS_MAX = 64
BUCKETS_MAX = 64
SIZE = r"^[0-9]{1,6}(\.[0-9]{1,3})?(KiB|MiB|GiB)$"


def is_none(value: object) -> bool:
    """Tell whether a field was left out."""
    return value is None


class WarmUp(UserInput):
    """A request that a model computes when it is loaded."""

    inputs: dict[str, Any]
    """As in the HTTP API."""
    params: dict[str, Any] = Field(default_factory=dict)


class Padded(UserInput):
    """How one input is padded."""

    axis: int = Field(default=1, ge=0, lt=RANK_MAX)
    """The dimension that differs from request to request."""
    value: float = Field(default=0.0, strict=False)
    """What is put behind what is there."""


class Buckets(UserInput):
    """How requests of different lengths share a call of the engine."""

    sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        strict=False, min_length=1, max_length=BUCKETS_MAX
    )
    """Lengths that are computed, ascending: a request is padded to the next one. A longer one is
    computed as it is."""
    inputs: dict[str, Padded] = Field(min_length=1)
    mask: str = ""
    """An input that is 1 where there is data and 0 where there is padding. If it is not required,
    it is made for requests that lack it."""
    outputs: dict[str, Annotated[int, Field(ge=0, lt=RANK_MAX)]] = Field(default_factory=dict)
    """Outputs that are cut back, and along which dimension."""

    @property
    def padded(self) -> dict[str, Padded]:
        """All inputs that are padded, the mask too."""
        return self.inputs if not self.mask else {self.mask: Padded()} | self.inputs

    @model_validator(mode="after")
    def _ascends(self) -> "Buckets":
        if list(self.sizes) != sorted(set(self.sizes)):
            raise ValueError("the sizes of buckets must ascend")
        return self


class Limits(UserInput):
    """What one model may take of its worker."""

    memory: Annotated[str, Field(pattern=SIZE)] | None = None
    """Memory of its process: `512MiB`. A model with this limit runs in a process of its own."""
    threads: int | None = Field(default=None, ge=1, le=1024)
    """Threads of one inference."""
    gpu_share: float | None = Field(default=None, gt=0, le=1, strict=False)
    """Of the memory of a GPU."""

    @property
    def memory_bytes(self) -> int | None:
        """The limit of memory in bytes; None for no limit."""
        if self.memory is None:
            return None
        number, unit = self.memory[:-3], self.memory[-3:]
        return int(float(number) * {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}[unit])
