"""Inferences over gRPC: one answer, or a stream of them."""

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import ValidationError

from schemas import tensors
from schemas.catalogue import ModelSpec
from schemas.errors import InvalidArgument
from schemas.messages import Header
from schemas.open_inference import InferRequest
from schemas.values import Tensor
from schemas.workflow import invalid
from services.gateway.inference import answers, asks, elements
from services.gateway.inference.asks import InferAsk
from services.gateway.inference.protobuf import message
from services.gateway.inference.regions import NONE, Regions, take_place
from services.gateway.inference.service import Inferred
from services.gateway.routes import Parts


FINAL, WANTS_FINAL = "triton_final_response", "triton_enable_empty_final_response"
_CONTENTS = {
    "BOOL": "bool_contents",
    "BYTES": "bytes_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "INT64": "int64_contents",
    "UINT64": "uint64_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
}


@dataclass(frozen=True)
class Call:
    """One request under way."""

    context: Any
    request_id: str
    facts: dict[str, Any] = field(default_factory=dict)
    """For the log line."""


class Asking:
    """Answers inferences.

    Args:
        parts: What the gateway stands on.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def one(self, request: Any, call: Call) -> Any:
        """Answer with the whole.

        Raises:
            ClawdbotError: It cannot be answered.
        """
        begun = time.perf_counter()
        spec, ask = await self._read(request, call)
        name, headers = request.model_name, {Header.CORRELATION_ID: call.request_id}
        read = time.perf_counter()
        found = await self._parts.inferences.infer(name, spec, ask, headers)
        asked = time.perf_counter()
        response = self._response(request, spec, ask, found)
        times = {"read": read - begun, "ask": asked - read, "write": time.perf_counter() - asked}
        self._parts.traces.note(name, call.request_id, times)
        return response

    async def may_grow(self, request: Any) -> bool:
        """Tell whether a request may be answered in parts.

        Raises:
            NotFound, BusUnavailable: No such model, or nobody can tell.
        """
        name, version = request.model_name, request.model_version or None
        return (await self._parts.inferences.model(name, version)).streams

    async def stream(self, request: Any, call: Call) -> AsyncGenerator[Any, None]:
        """Yield the answer in parts; each says whether it is the last.

        Raises:
            ClawdbotError: It cannot be answered.
        """
        name, version = request.model_name, request.model_version or None
        spec = await self._parts.inferences.model(name, version, call.request_id)
        if not spec.streams:
            request.parameters.pop(WANTS_FINAL, None)
            response = await self.one(request, call)
            response.parameters[FINAL].bool_param = True
            yield response
            return
        wants_final = WANTS_FINAL in request.parameters
        request.parameters.pop(WANTS_FINAL, None)
        spec, ask = await self._read(request, call)
        headers = {Header.CORRELATION_ID: call.request_id}
        stream = self._parts.inferences.stream(request.model_name, spec, ask, headers)
        async with aclosing(stream) as parts:
            async for found, is_last in parts:
                if found.outputs or wants_final:
                    response = self._response(request, spec, ask, found)
                    response.parameters[FINAL].bool_param = is_last
                    yield response

    async def _read(self, request: Any, call: Call) -> tuple[ModelSpec, InferAsk]:
        name = request.model_name
        call.facts["model"] = name[:128]
        version = request.model_version or None
        spec = await self._parts.inferences.model(name, version, call.request_id)
        ask = asks.ask_of(spec, inputs_of(request, self._parts.regions), head_of(request))
        asks.check_places(ask, self._parts.regions)
        left_s = call.context.time_remaining()
        if left_s is not None and left_s < (ask.timeout_s or spec.timeout_s):
            ask = replace(ask, timeout_s=max(left_s, 0.001))
        return spec, ask

    def _response(self, request: Any, spec: ModelSpec, ask: InferAsk, found: Inferred) -> Any:
        response = message("inference.ModelInferResponse")(
            model_name=request.model_name, model_version=spec.version, id=ask.id
        )
        for key, value in found.parameters(request.model_name).items():
            response.parameters[key].string_param = value
        for wanted in found.of(ask.outputs) if found.outputs else ():
            tensor = answers.tensor_of(found.outputs, wanted)
            output = response.outputs.add(
                name=wanted.port.tensor_name, datatype=tensor.datatype, shape=tensor.shape
            )
            if wanted.place is None:
                response.raw_output_contents.append(tensor.data)
                continue
            response.raw_output_contents.append(b"")  # contents are found by their index
            _say(output, answers.put(tensor, wanted, self._parts.regions))
        return response


def _say(output: Any, params: Mapping[str, Any]) -> None:
    """Write parameters of shared memory."""
    for name, value in params.items():
        kind = "string_param" if isinstance(value, str) else "int64_param"
        setattr(output.parameters[name], kind, value)


def head_of(request: Any) -> InferRequest:
    """Return what a request says besides its tensors.

    Raises:
        InvalidArgument: It is malformed.
    """
    outputs = [
        {"name": item.name, "parameters": parameters_of(item.parameters)}
        for item in request.outputs
    ]
    document = {
        "id": request.id,
        "parameters": parameters_of(request.parameters),
        "inputs": [],
        "outputs": outputs,
    }
    try:
        return InferRequest.model_validate(document)
    except ValidationError as error:
        raise invalid(error) from error


def inputs_of(request: Any, regions: Regions = NONE) -> Sequence[tuple[str, Tensor]]:
    """Return the tensors of a request: raw, typed, or in shared memory.

    Raises:
        InvalidArgument: Mixed, more or fewer raw contents than inputs, or one that does not fit.
        NotFound: A region is not registered.
        Unsupported: Shared memory is not allowed here.
    """
    raw = list(request.raw_input_contents)
    places = [take_place(params) for params in map(_parameters_of, request.inputs)]
    sent = places.count(None)
    if raw and len(raw) != sent:
        raise InvalidArgument(f"there are {sent} inputs and {len(raw)} raw_input_contents")
    found: list[tuple[str, Tensor]] = []
    for item, place in zip(request.inputs, places, strict=True):
        with asks.about(item.name):
            if (raw or place) and item.HasField("contents"):
                raise InvalidArgument("send contents, raw_input_contents or a region, not two")
            shape = tuple(item.shape)
            if len(shape) > tensors.RANK_MAX or any(size < 0 for size in shape):
                raise InvalidArgument(
                    f"a shape has at most {tensors.RANK_MAX} dimensions, none below 0"
                )
            if place is not None:
                found.append((item.name, asks.placed(item.datatype, shape, place, regions)))
                continue
            data = raw.pop(0) if raw else _typed(item)
            tensor = Tensor(datatype=item.datatype, shape=shape, data=data)
            tensor.check()
            found.append((item.name, tensor))
    return found


def _parameters_of(item: Any) -> dict[str, Any]:
    """Return an input's parameters, of which only those of shared memory are known."""
    with asks.about(item.name):
        return parameters_of(item.parameters)


def _typed(item: Any) -> bytes:
    """Return the bytes of typed contents."""
    if item.datatype not in _CONTENTS:
        raise InvalidArgument(f"{item.datatype[:32] or 'no datatype'}: send raw_input_contents")
    field = _CONTENTS[item.datatype]
    for other, _ in item.contents.ListFields():
        if other.name != field:
            raise InvalidArgument(f"the contents of {item.datatype} are {field}, not {other.name}")
    flat = list(getattr(item.contents, field))
    if item.datatype == tensors.BYTES:
        return tensors.pack(flat)
    return elements.pack(item.datatype, flat)


def parameters_of(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters as plain values."""
    plain: dict[str, Any] = {}
    for name, value in found.items():
        kind = value.WhichOneof("parameter_choice")
        if kind is None:
            raise InvalidArgument(f"the parameter '{name[:128]}' has no value")
        plain[name] = getattr(value, kind)
    return plain
