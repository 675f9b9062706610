"""The Open Inference Protocol v2 over gRPC."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from schemas.errors import ClawdbotError, FailedPrecondition, InvalidArgument, ModelUnavailable
from schemas.ids import new_id
from services.errors import Unsupported
from services.gateway.inference.pipeline import in_order
from services.gateway.inference.protobuf import HEALTH, SERVICE, message
from services.gateway.inference.rpc_infer import Asking, Call
from services.gateway.inference.rpc_management import Management
from services.gateway.inference.service import extensions
from services.gateway.routes import Parts
from services.gateway.routes.health import check_ready
from services.micro import CRASHED, VERSION
from services.telemetry import MessageMeter, get_logger


log = get_logger()

STOP_S = 5.0
_SERVING = 1
Method = Callable[[Any, Any], Awaitable[Any]]


class InferenceServer:
    """Serves the protocol on a port of its own.

    Args:
        parts: What the gateway stands on.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._asking = Asking(parts)
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
                "ModelInfer": self._asking.one,
                **Management(self._parts).methods(),
            },
            HEALTH: {"Check": self._health},
        }
        for service, methods in services.items():
            handlers = {name: self._handler(service, name, do) for name, do in methods.items()}
            if service == SERVICE:
                handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
                    self._stream,
                    response_serializer=message(
                        "inference.ModelStreamInferResponse"
                    ).SerializeToString,
                )
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

        kind = message(f"{package}.{stem}Request")

        async def handle(data: bytes, context: Any) -> Any:
            call, response = Call(context, new_id()), None
            with self._noted(name, len(data), call) as noted:
                try:
                    response = await do(decoded(kind, data), call)
                except ClawdbotError as error:
                    noted.failed(code_of(error), sentence(error))
                except Exception:
                    log.exception("request_crashed", request_id=call.request_id)
                    noted.failed(grpc.StatusCode.INTERNAL, f"{CRASHED}: {call.request_id}")
            if response is None:
                await context.abort(noted.code, noted.text)
            return response

        return grpc.unary_unary_rpc_method_handler(
            handle,
            response_serializer=message(f"{package}.{stem}Response").SerializeToString,
        )

    @contextmanager
    def _noted(self, name: str, in_bytes: int, call: Call) -> Iterator["_Noted"]:
        """Count a request and write its line, also when the client goes away."""
        begun, noted = time.perf_counter(), _Noted()
        try:
            yield noted
        except (asyncio.CancelledError, GeneratorExit):
            noted.failed(grpc.StatusCode.CANCELLED, "the client went away")
            raise
        finally:
            seconds = time.perf_counter() - begun
            self._meter.handled("terminal" if noted.text else "ok", seconds)
            if noted.text or name in {"ModelInfer", "ModelStreamInfer"}:
                log.info(
                    "grpc_handled",
                    method=name,
                    code=noted.code.name,
                    error=noted.text or None,
                    request_id=call.request_id,
                    handle_ms=round(seconds * 1000, 3),
                    in_bytes=in_bytes,
                    **call.facts,
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
        async with self._parts.bus.prompt(self._parts.settings.request_s_max):
            spec = await self._parts.inferences.model(name, version)
            await self._parts.inferences.check_ready(name, spec)

    async def _metadata(self, _: Any, __: Any) -> Any:
        made = message("inference.ServerMetadataResponse")
        offered = extensions(shared_memory=self._parts.regions.allowed)
        return made(name="clawdbot", version=VERSION, extensions=offered)

    async def _model_metadata(self, request: Any, _: Any) -> Any:
        spec = await self._parts.inferences.model(request.name, request.version or None)
        found = self._parts.inferences.metadata(request.name, spec)
        return message("inference.ModelMetadataResponse")(**found.model_dump())

    async def _stream(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        """Answer the requests of a stream in their order."""

        def answer(data: bytes) -> AsyncGenerator[Any, None]:
            return self._answers(data, context)

        async with aclosing(in_order(requests, answer, self._may_grow)) as responses:
            async for response in responses:
                yield response

    async def _may_grow(self, data: bytes) -> bool:
        """Tell whether a request may be answered in parts; one that is refused is not."""
        try:
            return await self._asking.may_grow(
                decoded(message("inference.ModelInferRequest"), data)
            )
        except ClawdbotError:
            return False

    async def _answers(self, data: bytes, context: Any) -> AsyncGenerator[Any, None]:
        """Yield the responses to one request of a stream; an error is one too."""
        response, kind = (
            message(f"inference.{name}")
            for name in ("ModelStreamInferResponse", "ModelInferRequest")
        )
        call, request = Call(context, new_id()), kind()
        with self._noted("ModelStreamInfer", len(data), call) as noted:
            try:
                request = decoded(kind, data)
                async with aclosing(self._asking.stream(request, call)) as parts:
                    async for part in parts:
                        yield response(infer_response=part)
            except ClawdbotError as error:
                noted.failed(code_of(error), sentence(error))
            except Exception:
                log.exception("request_crashed", request_id=call.request_id)
                noted.failed(grpc.StatusCode.INTERNAL, f"{CRASHED}: {call.request_id}")
        if noted.text:
            failed = message("inference.ModelInferResponse")(id=request.id)
            yield response(error_message=noted.text, infer_response=failed)


def decoded(kind: Any, data: bytes) -> Any:
    """Return the message that bytes are.

    Raises:
        InvalidArgument: They are none.
    """
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise InvalidArgument(f"the bytes are no {kind.DESCRIPTOR.name}") from error


def code_of(error: ClawdbotError) -> Any:
    """Return gRPC's status; our codes are its words."""
    if isinstance(error, Unsupported):
        return grpc.StatusCode.UNIMPLEMENTED
    return grpc.StatusCode[error.code]


def sentence(error: ClawdbotError) -> str:
    """Return what is wrong, with the field that is to blame."""
    return error.message if error.field is None else f"{error.field}: {error.message}"


class _Noted:
    """How a request went."""

    def __init__(self) -> None:
        self.code: Any = grpc.StatusCode.OK
        self.text = ""

    def failed(self, code: Any, text: str) -> None:
        """Take note of an error."""
        self.code, self.text = code, text
