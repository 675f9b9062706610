"""The JSON bodies of the Open Inference Protocol v2, as Triton speaks it.

Source: github.com/kserve/open-inference-protocol; Triton's extensions binary_tensor_data,
parameters and schedule_policy.
"""

from typing import Annotated, Any

from pydantic import ConfigDict, Field

from schemas.message import Message, UserInput
from schemas.tensors import COUNT_MAX, RANK_MAX


TENSORS_MAX = 256
ID_CHARS_MAX = 256

Parameters = dict[str, bool | int | float | str]
Shape = Annotated[list[Annotated[int, Field(ge=0, le=COUNT_MAX)]], Field(max_length=RANK_MAX)]


class InferenceError(Message):
    """What every refusal below /v2 is."""

    error: str
    """What is wrong, and how to mend it."""


class Live(Message):
    """The process runs."""

    live: bool = True


class Ready(Message):
    """Inferences are taken."""

    ready: bool = True


class ModelReady(Message):
    """A model serves."""

    name: str
    ready: bool = True


class ServerMetadata(Message):
    """Who answers, and which extensions of the protocol work."""

    name: str
    version: str
    extensions: tuple[str, ...]


class TensorMetadata(Message):
    """A tensor of a model's signature."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    """-1 is any size."""


class ModelMetadata(Message):
    """A model's signature."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]


class InputTensor(UserInput):
    """An input; its elements are `data`, or bytes behind the JSON."""

    name: str
    shape: Shape
    datatype: str
    parameters: Parameters = Field(default_factory=dict)
    """`binary_data_size`: how many of the bytes behind the JSON are this tensor's."""
    data: Any = None
    """Elements in row-major order, nested as the shape is or flat."""


class RequestedOutput(UserInput):
    """An output that is wanted."""

    name: str
    parameters: Parameters = Field(default_factory=dict)
    """`binary_data`: as bytes behind the JSON."""


class InferRequest(UserInput):
    """An inference."""

    id: str = Field(default="", max_length=ID_CHARS_MAX)
    """Comes back with the answer."""
    parameters: Parameters = Field(default_factory=dict)
    """`priority`, `timeout` in microseconds, `binary_data_output`; others are the engine's."""
    inputs: list[InputTensor] = Field(max_length=TENSORS_MAX)
    outputs: list[RequestedOutput] = Field(default_factory=list, max_length=TENSORS_MAX)
    """All of them, when none is named."""


class GenerateRequest(UserInput):
    """Inputs as plain JSON; keys that are no input of the model are parameters."""

    model_config = ConfigDict(extra="allow")

    id: str = Field(default="", max_length=ID_CHARS_MAX)
    text_input: str | None = None
    """The one text that the model needs, where its name is another."""
    parameters: Parameters = Field(default_factory=dict)


class OutputTensor(Message):
    """An output."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: Parameters | None = None
    data: list[Any] | None = None
    """Flat, in row-major order."""


class InferResponse(Message):
    """What a model gave."""

    model_name: str
    model_version: str
    id: str | None = None
    parameters: Parameters | None = None
    """`served_by`, where another model stood in."""
    outputs: tuple[OutputTensor, ...]


class IndexRequest(UserInput):
    """Which models of the repository are asked for."""

    ready: bool = False
    """Only those that a worker has."""


class IndexEntry(Message):
    """One version of a model in the repository."""

    name: str
    version: str
    state: str
    """READY or UNAVAILABLE."""
    reason: str = ""


class RepositoryRequest(UserInput):
    """What is said besides the name when a model is loaded or unloaded."""

    parameters: dict[str, Any] = Field(default_factory=dict)
    """Of load: `file:<path>.onnx`, a file in base64 to push first, and `config`, JSON whose
    `max_batch_size` counts then."""
