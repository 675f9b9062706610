"""The generate extension: a model's inputs as plain JSON, its answer too, whole or as it grows.

Source: Triton's generate extension; keys that are no input are parameters.
"""

from collections.abc import Mapping
from typing import Any

import orjson

from schemas import tensors
from schemas.catalogue import ModelSpec, Port
from schemas.errors import InvalidArgument
from schemas.open_inference import ID_CHARS_MAX
from schemas.values import Binary, Tensor, Value
from services.gateway.inference import elements
from services.gateway.inference.asks import InferAsk, Wanted, about, ask_params, whole


TEXT_IN, TEXT_OUT = "text_input", "text_output"


def ask_of(body: bytes, spec: ModelSpec) -> InferAsk:
    """Read a request: `text_input` is the one text that a model needs, other keys name inputs.

    Raises:
        InvalidArgument: Names the input or the parameter.
    """
    document = _document(body)
    request_id, params = document.pop("id", ""), document.pop("parameters", {})
    if not isinstance(request_id, str) or len(request_id) > ID_CHARS_MAX:
        raise InvalidArgument(f"send at most {ID_CHARS_MAX} characters", field="id")
    if not isinstance(params, dict):
        raise InvalidArgument("send an object", field="parameters")
    inputs, rest = _bound(document, spec)
    for name, value in {**params, **rest}.items():
        if not isinstance(value, bool | int | float | str):
            raise InvalidArgument("send a text, a number, true or false", field=name[:128])
    said = ask_params({**params, **rest})
    wanted = tuple(Wanted(port, binary=False) for port in spec.given)
    return InferAsk(inputs=inputs, outputs=wanted, id=request_id, **said)


def _document(body: bytes) -> dict[str, Any]:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidArgument(f"the body is not JSON: {error.msg}") from error
    if not isinstance(document, dict):
        raise InvalidArgument("send a JSON object")
    return document


def _bound(document: Mapping[str, Any], spec: ModelSpec) -> tuple[dict[str, Value], dict[str, Any]]:
    """Return what is an input, by port, and the rest."""
    ports = {port.tensor_name: port for port in spec.asked}
    inputs: dict[str, Value] = {}
    rest: dict[str, Any] = {}
    for key, value in document.items():
        port = ports.get(key) or (_the_text(spec) if key == TEXT_IN else None)
        if port is None:
            rest[key] = value
            continue
        with about(key):
            inputs[port.name] = _value(value, port)
    return whole(spec, inputs), rest


def answer_of(head: Mapping[str, Any], spec: ModelSpec, outputs: Mapping[str, Value]) -> bytes:
    """Return an answer, or a part of one: each output by its name, the first text as such.

    Raises:
        InvalidArgument: JSON cannot say an output.
    """
    document = dict(head)
    for port in spec.given:
        if port.name not in outputs:
            continue
        with about(port.tensor_name, "output"):
            found = _plain(outputs[port.name])
        document[port.tensor_name] = found
        if port.kind == "text":
            document.setdefault(TEXT_OUT, found)
    return orjson.dumps(document)


def _the_text(spec: ModelSpec) -> Port:
    """Return the input that is meant where nobody names it."""
    texts = [port for port in spec.asked if port.kind == "text"]
    needed = [port for port in texts if port.required] or texts
    if not texts:  # of tokens any will do: a text stands for all of them
        needed = [port for port in spec.made if port.vocabulary is not None][:1]
    if len(needed) != 1:
        known = ", ".join(port.tensor_name for port in spec.asked) or "none"
        raise InvalidArgument(
            f"the model has not one text as its input; name inputs ({known})", field=TEXT_IN
        )
    return needed[0]


def _value(value: Any, port: Port) -> Value:
    match port.kind:
        case "json":
            return value
        case "text":
            if not isinstance(value, str):
                raise InvalidArgument("send a text")
            return value
        case "tensor" if port.vocabulary is not None and isinstance(value, str):
            return value
        case "tensor":
            flat = value if isinstance(value, list) else [value]
            return elements.from_json(port.datatype, _shape(port, flat), flat)
        case _:
            raise InvalidArgument("this input is bytes; send it to /infer as binary data")


def _shape(port: Port, flat: list[Any]) -> list[int]:
    """Return the shape of a list: its open dimension is as large as the list says."""
    known = tensors.count_of([size for size in port.shape if size >= 0])
    if port.shape.count(-1) > 1:
        if flat and isinstance(flat[0], list) and len(port.shape) == 2:  # noqa: PLR2004 - a matrix
            return [len(flat), len(flat[0])]
        raise InvalidArgument("more than one dimension is open; send it to /infer with its shape")
    count = sum(len(item) if isinstance(item, list) else 1 for item in flat)
    return [count // max(known, 1) if size < 0 else size for size in port.shape]


def _plain(value: Value) -> Any:
    if isinstance(value, Binary):
        raise InvalidArgument("JSON cannot say bytes; ask /infer for binary data")
    if not isinstance(value, Tensor):
        return value
    flat = elements.to_json(value)
    return flat[0] if len(flat) == 1 else flat
