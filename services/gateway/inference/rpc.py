"""The Open Inference Protocol v2 over gRPC."""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import grpc
from pydantic import ValidationError

from schemas import tensors
from schemas.errors import ClawdbotError, FailedPrecondition, InvalidArgument, ModelUnavailable
from schemas.ids import new_id
from schemas.messages import Header
from schemas.open_inference import InferRequest
from schemas.values import Tensor
from schemas.workflow import invalid
from services.errors import Unsupported
from services.gateway.inference import answers, asks, elements, repository
from services.gateway.inference.protobuf import HEALTH, SERVICE, message
from services.gateway.routes import Parts
from services.gateway.routes.health import check_ready
from services.gateway.routes.inference import EXTENSIONS
from services.micro import CRASHED, VERSION
from services.telemetry import MessageMeter, get_logger


log = get_logger()

STOP_S = 5.0
_SERVING = 1
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
Method = Callable[[Any, Any], Awaitable[Any]]


class InferenceServer:
    """Serves the protocol on a port of its own.

    Args:
        parts: What the gateway stands on.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._meter = MessageMeter("gateway", "grpc")
        self._server: Any = None

    async def start(self, host: str, port: int) -> int:
        """Begin to listen; return the port.

        Raises:
            FailedPrecondition: Somebody else has it.
        """
        settings = self._parts.settings
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", settings.body_bytes_max),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
            ],
            maximum_concurrent_rpcs=settings.waits_max,
        )
        services: dict[str, dict[str, Method]] = {
            SERVICE: {
                "ServerLive": self._live,
                "ServerReady": self._ready,
                "ModelReady": self._model_ready,
                "ServerMetadata": self._metadata,
                "ModelMetadata": self._model_metadata,
                "ModelInfer": self._infer,
                "RepositoryIndex": self._index,
                "RepositoryModelLoad": self._load,
                "RepositoryModelUnload": self._unload,
            },
            HEALTH: {"Check": self._health},
        }
        for service, methods in services.items():
            handlers = {name: self._handler(service, name, do) for name, do in methods.items()}
            generic = grpc.method_handlers_generic_handler(service, handlers)
            self._server.add_generic_rpc_handlers((generic,))
        target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            bound: int = self._server.add_insecure_port(target)
        except RuntimeError as error:
            raise FailedPrecondition(
                f"cannot listen on {target}; choose another port", field="CLAWDBOT_GRPC_PORT"
            ) from error
        await self._server.start()
        log.info("grpc_listening", host=host, port=bound)
        return bound

    async def close(self) -> None:
        """Let what is under way finish, for a moment."""
        if self._server is not None:
            await self._server.stop(STOP_S)

    def _handler(self, service: str, name: str, do: Method) -> Any:
        """Return a method that counts, logs, and says errors in gRPC's words."""
        package = service.rpartition(".")[0]
        stem = "HealthCheck" if service == HEALTH else name

        async def handle(request: Any, context: Any) -> Any:
            begun, request_id = time.perf_counter(), new_id()
            facts: dict[str, Any] = {}
            code, text, response = grpc.StatusCode.OK, "", None
            try:
                response = await do(request, _Call(context, request_id, facts))
            except ClawdbotError as error:
                code, text = code_of(error), sentence(error)
            except Exception:
                log.exception("request_crashed", request_id=request_id)
                code, text = grpc.StatusCode.INTERNAL, f"{CRASHED}: {request_id}"
            seconds = time.perf_counter() - begun
            outcome = "ok" if response is not None else "terminal"
            self._meter.handled(outcome, seconds)
            if name == "ModelInfer" or response is None:
                log.info(
                    "grpc_handled",
                    method=name,
                    code=code.name,
                    error=text or None,
                    request_id=request_id,
                    handle_ms=round(seconds * 1000, 3),
                    in_bytes=request.ByteSize(),
                    **facts,
                )
            if response is None:
                await context.abort(code, text)
            return response

        return grpc.unary_unary_rpc_method_handler(
            handle,
            request_deserializer=message(f"{package}.{stem}Request").FromString,
            response_serializer=message(f"{package}.{stem}Response").SerializeToString,
        )

    async def _live(self, _: Any, __: Any) -> Any:
        return message("inference.ServerLiveResponse")(live=True)

    async def _ready(self, _: Any, __: Any) -> Any:
        await check_ready(self._parts)
        return message("inference.ServerReadyResponse")(ready=True)

    async def _health(self, request: Any, __: Any) -> Any:
        if request.service:
            await self._ready_model(request.service, None)
        return message("grpc.health.v1.HealthCheckResponse")(status=_SERVING)

    async def _model_ready(self, request: Any, _: Any) -> Any:
        try:
            await self._ready_model(request.name, request.version or None)
        except ModelUnavailable:
            return message("inference.ModelReadyResponse")(ready=False)
        return message("inference.ModelReadyResponse")(ready=True)

    async def _ready_model(self, name: str, version: str | None) -> None:
        spec = self._parts.inferences.model(name, version)
        async with self._parts.bus.prompt(self._parts.settings.request_s_max):
            await self._parts.inferences.check_ready(name, spec)

    async def _metadata(self, _: Any, __: Any) -> Any:
        made = message("inference.ServerMetadataResponse")
        return made(name="clawdbot", version=VERSION, extensions=EXTENSIONS)

    async def _model_metadata(self, request: Any, _: Any) -> Any:
        spec = self._parts.inferences.model(request.name, request.version or None)
        found = self._parts.inferences.metadata(request.name, spec)
        return message("inference.ModelMetadataResponse")(**found.model_dump())

    async def _index(self, request: Any, _: Any) -> Any:
        found = await repository.index(self._parts, only_ready=request.ready)
        return message("inference.RepositoryIndexResponse")(
            models=[entry.model_dump() for entry in found]
        )

    async def _load(self, request: Any, _: Any) -> Any:
        await repository.load(self._parts, request.model_name, _parameters(request.parameters))
        return message("inference.RepositoryModelLoadResponse")()

    async def _unload(self, request: Any, _: Any) -> Any:
        await repository.unload(self._parts, request.model_name, _parameters(request.parameters))
        return message("inference.RepositoryModelUnloadResponse")()

    async def _infer(self, request: Any, call: "_Call") -> Any:
        name = request.model_name
        call.facts["model"] = name[:128]
        spec = self._parts.inferences.model(name, request.model_version or None, call.request_id)
        ask = asks.ask_of(spec, inputs_of(request), head_of(request))
        left_s = call.context.time_remaining()
        if left_s is not None and left_s < (ask.timeout_s or spec.timeout_s):
            ask = replace(ask, timeout_s=max(left_s, 0.001))
        headers = {Header.CORRELATION_ID: call.request_id}
        found = await self._parts.inferences.infer(name, spec, ask, headers)
        response = message("inference.ModelInferResponse")(
            model_name=name, model_version=spec.version, id=ask.id
        )
        if found.model != name:
            response.parameters["served_by"].string_param = found.model
        for wanted in ask.outputs:
            tensor = answers.tensor_of(found.outputs, wanted.port)
            response.outputs.add(
                name=wanted.port.tensor_name, datatype=tensor.datatype, shape=tensor.shape
            )
            response.raw_output_contents.append(tensor.data)
        return response


class _Call:
    """One call under way."""

    def __init__(self, context: Any, request_id: str, facts: dict[str, Any]) -> None:
        self.context = context
        self.request_id = request_id
        self.facts = facts


def code_of(error: ClawdbotError) -> Any:
    """Return gRPC's status; our codes are its words."""
    if isinstance(error, Unsupported):
        return grpc.StatusCode.UNIMPLEMENTED
    return grpc.StatusCode[error.code]


def sentence(error: ClawdbotError) -> str:
    """Return what is wrong, with the field that is to blame."""
    return error.message if error.field is None else f"{error.field}: {error.message}"


def head_of(request: Any) -> InferRequest:
    """Return what a request says besides its tensors.

    Raises:
        InvalidArgument: It is malformed.
    """
    outputs = [
        {"name": item.name, "parameters": _parameters(item.parameters)} for item in request.outputs
    ]
    document = {
        "id": request.id,
        "parameters": _parameters(request.parameters),
        "inputs": [],
        "outputs": outputs,
    }
    try:
        return InferRequest.model_validate(document)
    except ValidationError as error:
        raise invalid(error) from error


def inputs_of(request: Any) -> Sequence[tuple[str, Tensor]]:
    """Return the tensors of a request, raw or typed.

    Raises:
        InvalidArgument: Mixed, more or fewer raw contents than inputs, or one that does not fit.
        Unsupported: Shared memory.
    """
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InvalidArgument(
            f"there are {len(request.inputs)} inputs and {len(raw)} raw_input_contents"
        )
    found: list[tuple[str, Tensor]] = []
    for index, item in enumerate(request.inputs):
        with asks.about(item.name):
            asks.refuse_unsupported(_parameters(item.parameters), "parameters")
            if raw and item.HasField("contents"):
                raise InvalidArgument("send contents or raw_input_contents, not both")
            shape = tuple(item.shape)
            if len(shape) > tensors.RANK_MAX or any(size < 0 for size in shape):
                raise InvalidArgument(
                    f"a shape has at most {tensors.RANK_MAX} dimensions, none below 0"
                )
            data = raw[index] if raw else _typed(item)
            tensor = Tensor(datatype=item.datatype, shape=shape, data=data)
            tensor.check()
            found.append((item.name, tensor))
    return found


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


def _parameters(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters as plain values."""
    plain: dict[str, Any] = {}
    for name, value in found.items():
        kind = value.WhichOneof("parameter_choice")
        if kind is None:
            raise InvalidArgument(f"the parameter '{name[:128]}' has no value")
        plain[name] = getattr(value, kind)
    return plain
