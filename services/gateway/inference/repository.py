"""The repository extension of the Open Inference Protocol: index, load, unload."""

import asyncio
import base64
import binascii
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import orjson

from events.models import WorkerCard
from schemas.errors import InvalidArgument, ModelUnavailable, NotFound
from schemas.ids import DEFAULT_TENANT
from schemas.live_catalogue import spec_of
from schemas.onnx_file import examine
from schemas.open_inference import IndexEntry
from schemas.pushes import spec_of_onnx
from schemas.repository import AT, PART_BYTES_MAX, ModelControl, ModelFile, Push, check_name
from services.errors import Unsupported, WrongState
from services.gateway.inference import overrides
from services.gateway.inference.service import HIDDEN
from services.gateway.model_store import offers_of
from services.gateway.routes import Parts


LOOK_S = 0.1
"""Between two looks at what workers have."""
READY, UNAVAILABLE = "READY", "UNAVAILABLE"
CONFIG, FILE = "config", "file:"
UNLOAD_DEPENDENTS = "unload_dependents"


async def index(parts: Parts, *, only_ready: bool) -> list[IndexEntry]:
    """Return every version of every model, and whether a worker has it.

    Raises:
        StoreUnavailable, BusUnavailable: The bus does not answer.
    """
    async with parts.bus.prompt(parts.settings.request_s_max):
        cards = await parts.directory.cards(parts.clock.now())
    found = [*_of_catalogue(parts, cards), *_of_repository(parts, cards)]
    return [entry for entry in found if entry.state == READY or not only_ready]


async def load(parts: Parts, name: str, parameters: Mapping[str, Any]) -> None:
    """Have workers offer a model; return when one has it.

    With the parameter `file:<path>.onnx`, its bytes in base64, the file is pushed first; with
    `config` alone the model gets a version of the same files with that configuration.

    Raises:
        NotFound: There is no such model.
        InvalidArgument: A parameter is wrong; names it.
        WrongState: A config that changes a model of the catalogue's file.
        ModelUnavailable: No worker can have it; says why.
    """
    files = {key: item for key, item in parameters.items() if key.startswith(FILE)}
    _check_known(parameters, {*files, CONFIG})
    if files:
        await _push(parts, name, files, parameters.get(CONFIG, "{}"))
    elif CONFIG in parameters:
        await _override(parts, name, overrides.read(parameters[CONFIG]))
    elif parts.catalogue.base.models.get(name) is None:
        async with parts.bus.prompt(parts.settings.request_s_max):
            await parts.models.control(name, ModelControl(action="load"))
    await _wait(parts, name)


async def unload(parts: Parts, name: str, parameters: Mapping[str, Any]) -> None:
    """Have workers offer a model no more; it stays in the repository.

    Raises:
        NotFound: There is no such model.
        WrongState: It is of the catalogue's file.
        InvalidArgument: There is no such parameter.
        Unsupported: Dependents.
    """
    _check_known(parameters, {UNLOAD_DEPENDENTS})
    if parameters.get(UNLOAD_DEPENDENTS):
        raise Unsupported("no model has dependents", field=f"parameters.{UNLOAD_DEPENDENTS}")
    if parts.catalogue.base.models.get(name) is not None:
        raise WrongState(f"'{name}' is of the catalogue's file, and always offered")
    async with parts.bus.prompt(parts.settings.request_s_max):
        await parts.models.control(name, ModelControl(action="unload"))


def _check_known(parameters: Mapping[str, Any], known: set[str]) -> None:
    unknown = sorted(set(parameters) - known)
    if unknown:
        raise InvalidArgument("there is no such parameter", field=f"parameters.{unknown[0][:64]}")


def _of_catalogue(parts: Parts, cards: Iterable[WorkerCard]) -> Iterator[IndexEntry]:
    for name, spec in parts.catalogue.base.models.items():
        if spec.engine not in HIDDEN:
            yield _entry(name, spec.version, name, cards)


def _of_repository(parts: Parts, cards: Iterable[WorkerCard]) -> Iterator[IndexEntry]:
    for name, record in parts.catalogue.records.items():
        offered = {item.version for item in record.offered()}
        for item in record.versions:
            if item.version in offered:
                yield _entry(name, str(item.version), f"{name}{AT}{item.version}", cards)
            else:
                why = "not kept by the version policy" if record.loaded else "unloaded"
                yield IndexEntry(
                    name=name, version=str(item.version), state=UNAVAILABLE, reason=why
                )


def _entry(name: str, version: str, offered_as: str, cards: Iterable[WorkerCard]) -> IndexEntry:
    offers = list(offers_of(offered_as, cards))
    if any(offer.available for offer in offers):
        return IndexEntry(name=name, version=version, state=READY)
    why = offers[0].reason if offers else "no worker has it"
    return IndexEntry(name=name, version=version, state=UNAVAILABLE, reason=why)


async def _wait(parts: Parts, name: str) -> None:
    """Return when a worker has a model.

    Raises:
        ModelUnavailable: None can have it, or none has it in time.
    """
    try:
        async with asyncio.timeout(parts.settings.load_s_max):
            while True:
                offered_as = parts.catalogue.concrete(name, "")
                cards = await parts.directory.cards(parts.clock.now())
                offers = list(offers_of(offered_as, cards))
                if any(offer.available for offer in offers):
                    return
                if offers:
                    raise ModelUnavailable(f"'{name}' cannot be loaded: {offers[0].reason}")
                await asyncio.sleep(LOOK_S)
    except TimeoutError as error:
        raise ModelUnavailable(f"no worker has '{name}' yet; is one of its modality up?") from error


async def _override(parts: Parts, name: str, config: Mapping[str, Any]) -> None:
    """Have a version of a model with this configuration in use, and offer it.

    Raises:
        WrongState: It is of the catalogue's file, and would change.
    """
    own = parts.catalogue.base.models.get(name)
    if own is not None:
        changed = overrides.overridden(name, own, config)
        if changed != own or overrides.policy(name, own, config) is not None:
            raise WrongState(f"'{name}' is of the catalogue's file, and stays as it says")
        return
    async with parts.bus.prompt(parts.settings.push_s_max):
        record = await parts.models.repository.get(DEFAULT_TENANT, check_name(name))
        if not record.versions:
            raise NotFound(f"the repository has no model '{name[:64]}'", field="name")
        version = record.version(record.current or record.versions[-1].version)
        spec = overrides.overridden(name, version.spec, config)
        wanted, policy = version.version, overrides.policy(name, spec_of(version), config)
        if spec != version.spec:
            wanted = (await parts.models.push(name, Push(spec=spec, files=version.files))).version
        if wanted != record.current:
            await parts.models.control(name, ModelControl(action="promote", version=wanted))
        for order in (policy, ModelControl(action="load")):
            if order is not None:
                await parts.models.control(name, order)


async def _push(parts: Parts, name: str, files: Mapping[str, Any], config: object) -> None:
    """Push the one file that a client sent along.

    Raises:
        InvalidArgument: It is no ONNX file, or there are several.
    """
    [(key, text), *more] = files.items()
    path = key.removeprefix(FILE).rpartition("/")[2]
    if more:
        raise Unsupported("send one .onnx file; others go to /v1/models", field="parameters")
    where = f"parameters.{key[:64]}"
    data = _decoded(text, where)
    try:
        settings = orjson.loads(config if isinstance(config, str) else b"")
        rows = settings.get("max_batch_size", 0)
        spec = spec_of_onnx(examine(data), path, modality="text", max_batch_size=rows)
    except (orjson.JSONDecodeError, AttributeError) as error:
        raise InvalidArgument("send a JSON object", field="parameters.config") from error
    except InvalidArgument as error:
        raise InvalidArgument(error.message, field=where) from error
    async with parts.bus.prompt(parts.settings.push_s_max):
        stored = [
            await parts.models.repository.put_part(DEFAULT_TENANT, data[at : at + PART_BYTES_MAX])
            for at in range(0, len(data), PART_BYTES_MAX)
        ]
        file = ModelFile(
            path=path,
            size_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            parts=tuple(stored),
        )
        pushed = await parts.models.push(name, Push(spec=spec, files=(file,)))
        wanted = ModelControl(action="promote", version=pushed.version)
        await parts.models.control(name, wanted)
        await parts.models.control(name, ModelControl(action="load"))


def _decoded(text: object, where: str) -> bytes:
    """Return a file as HTTP (base64) or gRPC (bytes) brings it.

    Raises:
        InvalidArgument: Neither.
    """
    if isinstance(text, bytes):
        return text
    try:
        return base64.b64decode(text if isinstance(text, str) else "?", validate=True)
    except binascii.Error as error:
        raise InvalidArgument("send the file in base64", field=where) from error
