"""The extensions of the Open Inference Protocol over gRPC, beside inference itself."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from google.protobuf import json_format

from schemas.errors import InvalidArgument
from schemas.inference_management import LogSettings, RegionRequest, TraceSettings
from services.gateway.inference import repository
from services.gateway.inference.config import model_config
from services.gateway.inference.protobuf import message
from services.gateway.inference.rpc_infer import parameters_of
from services.gateway.inference.watching import change_log, log_settings
from services.gateway.routes import Parts
from services.gateway.routes.management import validated


Method = Callable[[Any, Any], Awaitable[Any]]


class Management:
    """Answers for the extensions.

    Args:
        parts: What the gateway stands on.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def methods(self) -> dict[str, Method]:
        """Return what it answers, by name."""
        return {
            "ModelStatistics": self._statistics,
            "ModelConfig": self._config,
            "TraceSetting": self._trace,
            "LogSettings": self._log,
            "SystemSharedMemoryStatus": self._regions,
            "SystemSharedMemoryRegister": self._register,
            "SystemSharedMemoryUnregister": self._unregister,
            "CudaSharedMemoryStatus": self._no_regions,
            "CudaSharedMemoryUnregister": self._no_regions_more,
            "RepositoryIndex": self._index,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
        }

    async def _statistics(self, request: Any, _: Any) -> Any:
        models = await self._parts.inferences.counted(request.name, request.version or None)
        found = await self._parts.tallies.of(models)
        return _made("ModelStatisticsResponse", {"model_stats": [m.model_dump() for m in found]})

    async def _config(self, request: Any, _: Any) -> Any:
        spec = await self._parts.inferences.model(request.name, request.version or None)
        return _made("ModelConfigResponse", {"config": model_config(request.name, spec)})

    async def _trace(self, request: Any, _: Any) -> Any:
        name, traces = request.model_name, self._parts.traces
        if name:
            await self._parts.inferences.model(name)
        given = {key: list(item.value) for key, item in request.settings.items()}
        if not given:
            return _settings(traces.settings(name))
        document: dict[str, Any] = {
            key: values if key == "trace_level" else _only(key, values)
            for key, values in given.items()
            if values
        }
        document |= {key: None for key, values in given.items() if not values}
        return _settings(traces.change(validated(TraceSettings, document), name))

    async def _log(self, request: Any, _: Any) -> Any:
        given: dict[str, Any] = {}
        for key, item in request.settings.items():
            kind = item.WhichOneof("parameter_choice")
            given[key] = None if kind is None else getattr(item, kind)
        found = change_log(validated(LogSettings, given)) if given else log_settings()
        response = message("inference.LogSettingsResponse")()
        kinds = {bool: "bool_param", int: "uint32_param", str: "string_param"}
        for key, value in found.items():
            setattr(response.settings[key], kinds[type(value)], value)
        return response

    async def _regions(self, request: Any, _: Any) -> Any:
        found = self._parts.regions.status(request.name)
        regions = {item.name: item.model_dump() for item in found}
        return _made("SystemSharedMemoryStatusResponse", {"regions": regions})

    async def _register(self, request: Any, _: Any) -> Any:
        names = ("key", "offset", "byte_size")
        document = {name: getattr(request, name) for name in names}
        self._parts.regions.register(request.name, validated(RegionRequest, document))
        return _made("SystemSharedMemoryRegisterResponse", {})

    async def _unregister(self, request: Any, _: Any) -> Any:
        self._parts.regions.unregister(request.name)
        return _made("SystemSharedMemoryUnregisterResponse", {})

    async def _index(self, request: Any, _: Any) -> Any:
        found = await repository.index(self._parts, only_ready=request.ready)
        return _made("RepositoryIndexResponse", {"models": [one.model_dump() for one in found]})

    async def _load(self, request: Any, _: Any) -> Any:
        given = parameters_of(request.parameters)
        await repository.load(self._parts, request.model_name, given)
        return _made("RepositoryModelLoadResponse", {})

    async def _unload(self, request: Any, _: Any) -> Any:
        given = parameters_of(request.parameters)
        await repository.unload(self._parts, request.model_name, given)
        return _made("RepositoryModelUnloadResponse", {})

    async def _no_regions(self, _: Any, __: Any) -> Any:
        return _made("CudaSharedMemoryStatusResponse", {})

    async def _no_regions_more(self, _: Any, __: Any) -> Any:
        return _made("CudaSharedMemoryUnregisterResponse", {})


def _only(key: str, values: list[str]) -> str:
    if len(values) != 1:
        raise InvalidArgument("send one value", field=key)
    return values[0]


def _settings(found: Mapping[str, Any]) -> Any:
    response = message("inference.TraceSettingResponse")()
    for key, value in found.items():
        response.settings[key].value.extend(value if isinstance(value, list) else [value])
    return response


def _made(name: str, document: Mapping[str, Any]) -> Any:
    """Return a message of what is plain."""
    return json_format.ParseDict(document, message(f"inference.{name}")())
