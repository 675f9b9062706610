"""An inference as it is wanted, by what the model declares."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from schemas import tensors
from schemas.catalogue import ModelSpec, Port
from schemas.edges import spread
from schemas.errors import InvalidArgument
from schemas.open_inference import ID_CHARS_MAX, InferRequest, RequestedOutput
from schemas.values import OCTETS, Binary, Tensor, Value
from services.gateway.inference.regions import Place, Regions, take_place


_LANES = {0: "normal", 1: "high", 2: "normal"}


@dataclass(frozen=True)
class Wanted:
    """An output that is wanted."""

    port: Port
    binary: bool
    classes: int = 0
    """So many of its largest elements in its place; 0: the output itself."""
    rows: bool = False
    """Whether its first dimension counts rows."""
    place: Place | None = None
    """In shared memory instead of the answer."""


@dataclass(frozen=True)
class Step:
    """Where in which sequence a request is."""

    sequence: str
    is_start: bool
    is_end: bool


@dataclass(frozen=True)
class InferAsk:
    """One inference, understood and checked."""

    inputs: Mapping[str, Value]
    """By port; each fits its declaration."""
    outputs: tuple[Wanted, ...]
    id: str = ""
    lane: str = "normal"
    timeout_s: float = 0.0
    """0: as the model says."""
    step: Step | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    """For the engine."""


def ask_of(spec: ModelSpec, found: Sequence[tuple[str, Tensor]], request: InferRequest) -> InferAsk:
    """Bind tensors to a model's ports, and read the parameters.

    Raises:
        InvalidArgument: Names the tensor, or the parameter.
    """
    return InferAsk(bind(spec, found), **rest_of(spec, request))


def rest_of(spec: ModelSpec, request: InferRequest) -> dict[str, Any]:
    """Return what a request says besides its inputs."""
    own = dict(request.parameters)
    all_binary = _flag(own, "binary_data_output", "parameters")
    said = ask_params(own)
    outputs = _wanted(spec, request.outputs, all_binary=all_binary)
    return {"outputs": outputs, "id": request.id, **said}


def ask_params(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return lane, time and the engine's parameters that a request's parameters say.

    Raises:
        InvalidArgument: Names the parameter.
    """
    own = dict(given)
    lane = _LANES.get(_count(own, "priority"), "low")
    timeout_s = _count(own, "timeout") / 1e6
    step = _step(own)
    own = {name: own[name] for name in own if name != "headers" and not name.startswith("triton_")}
    return {"lane": lane, "timeout_s": timeout_s, "step": step, "params": own}


def _step(params: dict[str, Any]) -> Step | None:
    """Take the sequence out of parameters; 0 and the empty text are none."""
    is_start = _flag(params, "sequence_start", "parameters")
    is_end = _flag(params, "sequence_end", "parameters")
    sequence = params.pop("sequence_id", 0)
    if type(sequence) not in {int, str} or len(str(sequence)) > ID_CHARS_MAX:
        raise InvalidArgument("parameters: 'sequence_id' must be a number or a short text")
    if sequence:
        return Step(str(sequence), is_start, is_end)
    if is_start or is_end:
        raise InvalidArgument("parameters: a sequence needs a 'sequence_id', not 0")
    return None


def bind(spec: ModelSpec, found: Sequence[tuple[str, Tensor]]) -> dict[str, Value]:
    """Return the values of a model's inputs, by port.

    Raises:
        InvalidArgument: A tensor that is unknown, there twice, missing, or not as declared.
    """
    ports = bound(spec, [name for name, _ in found])
    inputs: dict[str, Value] = {}
    for (_, tensor), port in zip(found, ports, strict=True):
        with about(port.tensor_name):
            check_declared(tensor.datatype, tensor.shape, port)
            inputs[port.name] = value_of(tensor, port)
    return whole(spec, inputs)


def bound(spec: ModelSpec, names: Sequence[str]) -> list[Port]:
    """Return the ports of inputs, in their order.

    Raises:
        InvalidArgument: An input that is unknown, or there twice.
    """
    ports = {port.tensor_name: port for port in spec.asked}
    found: dict[str, Port] = {}
    for name in names:
        if name not in ports:
            known = ", ".join(ports)
            raise InvalidArgument(f"unknown input '{name[:128]}'; the model takes {known}")
        if name in found:
            raise InvalidArgument(f"the input '{name}' is there twice")
        found[name] = ports[name]
    return list(found.values())


def whole(spec: ModelSpec, inputs: dict[str, Value]) -> dict[str, Value]:
    """Return inputs with nothing missing; a text stands for all tokens of it.

    Raises:
        InvalidArgument: Names an input that is missing.
    """
    found = spread(spec, inputs) if spec.made else inputs
    for port in spec.asked:
        if port.required and port.name not in found:
            raise InvalidArgument(f"the input '{port.tensor_name}' is missing")
    return found


def placed(datatype: str, shape: Sequence[int], place: Place, regions: Regions) -> Tensor:
    """Return a tensor that is in shared memory.

    Raises:
        InvalidArgument: It does not fill its shape, or reaches past its region.
        NotFound: The region is not registered.
        Unsupported: Shared memory is not allowed here.
    """
    found = Tensor(datatype=datatype, shape=tuple(shape), data=regions.read(place))
    found.check()
    return found


def check_places(ask: InferAsk, regions: Regions) -> None:
    """Refuse outputs that are wanted where nothing is, before they are computed.

    Raises:
        NotFound: The region is not registered.
        Unsupported: Shared memory is not allowed here.
    """
    for item in ask.outputs:
        if item.place is not None:
            regions.check(item.place.region)


class about:  # noqa: N801 - reads as a word of the sentence
    """Says of which tensor an error is."""

    def __init__(self, name: str, side: str = "input") -> None:
        self._name = name
        self._side = side

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Put the name before the message."""
        if isinstance(error, InvalidArgument):
            raise type(error)(f"{self._side} '{self._name[:128]}': {error.message}") from error


def check_declared(datatype: str, shape: Sequence[int], port: Port) -> None:
    """Refuse a tensor that is not as a port declares it.

    Raises:
        InvalidArgument: Another datatype, or another shape.
    """
    if datatype not in tensors.DATATYPES:
        known = ", ".join(tensors.DATATYPES)
        raise InvalidArgument(f"unknown datatype '{datatype[:32]}'; use one of {known}")
    if port.made_of is not None and datatype == tensors.BYTES:
        if tensors.count_of(shape) != 1:
            raise InvalidArgument(f"send one element, with {port.made_of.source}")
        return
    if datatype != port.datatype:
        raise InvalidArgument(f"the datatype is {port.datatype}, not {datatype}")
    if not tensors.fits(shape, port.shape):
        raise InvalidArgument(f"the shape is {list(port.shape)}, not {list(shape)}")


def value_of(tensor: Tensor, port: Port) -> Value:
    """Return what a port takes."""
    kind: str = port.kind
    if port.made_of is not None and tensor.datatype == tensors.BYTES:
        kind = port.made_of.source
    if kind == "tensor":
        return tensor
    [item] = tensors.elements(tensor.data, 1)
    try:
        match kind:
            case "text":
                return item.decode()
            case "json":
                return orjson.loads(item)
            case _:
                return Binary(media_type=OCTETS, data=item)
    except UnicodeDecodeError as error:
        raise InvalidArgument("the text is not UTF-8") from error
    except orjson.JSONDecodeError as error:
        raise InvalidArgument("the element is not JSON") from error


def _wanted(
    spec: ModelSpec, requested: Sequence[RequestedOutput], *, all_binary: bool
) -> tuple[Wanted, ...]:
    ports = {port.tensor_name: port for port in spec.given}
    if not requested:
        return tuple(Wanted(port, all_binary) for port in spec.given)
    found: dict[str, Wanted] = {}
    for item in requested:
        if item.name not in ports:
            known = ", ".join(ports)
            raise InvalidArgument(f"unknown output '{item.name[:128]}'; the model gives {known}")
        if item.name in found:
            raise InvalidArgument(f"the output '{item.name}' is asked for twice")
        params = dict(item.parameters)
        where = f"output '{item.name}'"
        binary = _flag(params, "binary_data", where, default=all_binary)
        classes = _count(params, "classification", where)
        with about(item.name, "output"):
            place = take_place(params)
        rows = bool(spec.max_batch_size)
        found[item.name] = Wanted(ports[item.name], binary, classes, rows, place)
    return tuple(found.values())


def _flag(params: dict[str, Any], name: str, where: str, *, default: bool = False) -> bool:
    value = params.pop(name, default)
    if not isinstance(value, bool):
        raise InvalidArgument(f"{where}: '{name}' must be true or false")
    return value


def _count(params: dict[str, Any], name: str, where: str = "parameters") -> int:
    value = params.pop(name, 0)
    if type(value) is not int or value < 0:
        raise InvalidArgument(f"{where}: '{name}' must be a whole number, 0 or more")
    return value
