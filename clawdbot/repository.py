"""The model repository, as `client.repository`."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

import httpx
import orjson
import yaml
from pydantic import ValidationError

from clawdbot.protocol import ANSWER_S, Call
from events.model_folders import draft, keep, write_file
from events.packages import SPEC, FileDigest, Hints, Package, packages
from schemas.api import PartView, PushView, RepositoryList, RepositoryView, VersionView
from schemas.artefacts import check_paths
from schemas.errors import AlreadyExists, FailedPrecondition, NotFound
from schemas.repository import ModelControl, ModelFile, Push, VersionPolicy, split
from schemas.values import OCTETS
from schemas.workflow import invalid


T = TypeVar("T")
PUSH_S = 300.0
"""How long a gateway may take to look through a version, by default."""


class _Do(Protocol):
    """Carries a call out."""

    def __call__(self, call: Call[T]) -> T: ...


class _DoLater(Protocol):
    """Carries a call out, in asyncio."""

    def __call__(self, call: Call[T]) -> Awaitable[T]: ...


class Repository:
    """The models that were pushed. Every method raises the errors of `schemas.errors`."""

    def __init__(self, do: _Do) -> None:
        self._do = do

    def push(
        self,
        path: Path,
        name: str = "",
        *,
        percent: int = 100,
        hold: bool = False,
        force: bool = False,
        hints: Hints | None = None,
    ) -> list[PushView]:
        """Push the model in a folder or an `.onnx` file, or every model of a folder.

        Args:
            path: A folder with a `model.yaml`, an `.onnx` file, or a folder of such folders.
            name: Of the model; that of the folder or file by default.
            percent: How much of the requests it gets; all, so it is in use, by default.
            hold: Keep it without using it.
            force: Take it although its inputs or outputs are others than before.
            hints: Of files that say not enough of themselves.

        Returns:
            A version for each model; the same content again is the same version.
        """
        pushed: list[PushView] = []
        for package in packages(path, name, hints):
            files: list[ModelFile] = []
            for inside in package.paths:
                digest = FileDigest(inside)
                for data in package.parts(inside):
                    digest.add(data, self._do(_put_part(data)).sha256)
                files.append(digest.file())
            pushed.append(self._do(_push(package, files, percent=percent, hold=hold, force=force)))
        return pushed

    def pull(self, reference: str, folder: Path | None = None) -> Path:
        """Write a version below a new folder, as it was pushed; return the folder.

        Args:
            reference: `iris`, `iris@3`, `iris@stable`.
            folder: The name of the model by default; it must not be there.
        """
        version = version_of(self.get(split(reference)[0]), reference)
        target = _new_folder(folder, reference)
        with draft(target.parent) as fresh:
            for file in version.files:
                write_file(fresh, file, (self._do(_get_part(part)) for part in file.parts))
            _finish(fresh, target, version)
        return target

    def list(self) -> tuple[RepositoryView, ...]:
        """Return every model that was pushed."""
        return self._do(_list())

    def get(self, name: str) -> RepositoryView:
        """Return one model: its versions, and which of them its names mean."""
        return self._do(_get(name))

    def remove(self, reference: str, *, force: bool = False) -> None:
        """Remove a version, `iris@3`, or a whole model; what something needs only by force."""
        self._do(_remove(reference, force=force))

    def alias(self, name: str, alias: str, version: int) -> RepositoryView:
        """Let `name@alias` be a version."""
        return self._do(_control(name, "alias", alias=alias, version=version))

    def unalias(self, name: str, alias: str) -> RepositoryView:
        """Forget an alias."""
        return self._do(_control(name, "unalias", alias=alias))

    def canary(self, name: str, version: int, percent: int) -> RepositoryView:
        """Give a version a part of the requests; 0 ends it, 100 puts it in use."""
        return self._do(_control(name, "canary", version=version, percent=percent))

    def promote(self, name: str, version: int | None = None) -> RepositoryView:
        """Put a version in use: the canary, else the newest, unless another is named."""
        return self._do(_control(name, "promote", version=version))

    def rollback(self, name: str) -> RepositoryView:
        """End the canaries; where there are none, go back to the version in use before."""
        view = self.get(name)
        if not view.canaries:
            return self.promote(name, _before(view))
        for version in view.canaries:
            view = self.canary(name, int(version), 0)
        return view

    def policy(self, name: str, policy: VersionPolicy) -> RepositoryView:
        """Say which versions workers keep ready."""
        return self._do(_control(name, "policy", policy=policy.model_dump()))

    def load(self, name: str) -> RepositoryView:
        """Have workers offer a model again."""
        return self._do(_control(name, "load"))

    def unload(self, name: str) -> RepositoryView:
        """Have workers offer a model no more; it stays in the repository."""
        return self._do(_control(name, "unload"))


class AsyncRepository:
    """`Repository` for asyncio; see there."""

    def __init__(self, do: _DoLater) -> None:
        self._do = do

    async def push(
        self,
        path: Path,
        name: str = "",
        *,
        percent: int = 100,
        hold: bool = False,
        force: bool = False,
        hints: Hints | None = None,
    ) -> list[PushView]:
        """Push models, as `Repository.push` does."""
        pushed: list[PushView] = []
        for package in await asyncio.to_thread(packages, path, name, hints):
            files: list[ModelFile] = []
            for inside in package.paths:
                digest, parts = FileDigest(inside), package.parts(inside)
                while (data := await asyncio.to_thread(next, parts, b"")) != b"":
                    digest.add(data, (await self._do(_put_part(data))).sha256)
                files.append(digest.file())
            pushed.append(
                await self._do(_push(package, files, percent=percent, hold=hold, force=force))
            )
        return pushed

    async def pull(self, reference: str, folder: Path | None = None) -> Path:
        """Write a version below a new folder, as `Repository.pull` does."""
        version = version_of(await self.get(split(reference)[0]), reference)
        target = _new_folder(folder, reference)
        with draft(target.parent) as fresh:
            for file in version.files:
                parts = [await self._do(_get_part(part)) for part in file.parts]
                await asyncio.to_thread(write_file, fresh, file, parts)
            _finish(fresh, target, version)
        return target

    async def list(self) -> tuple[RepositoryView, ...]:
        """Return every model that was pushed."""
        return await self._do(_list())

    async def get(self, name: str) -> RepositoryView:
        """Return one model."""
        return await self._do(_get(name))

    async def remove(self, reference: str, *, force: bool = False) -> None:
        """Remove a version, `iris@3`, or a whole model; what something needs only by force."""
        await self._do(_remove(reference, force=force))

    async def alias(self, name: str, alias: str, version: int) -> RepositoryView:
        """Let `name@alias` be a version."""
        return await self._do(_control(name, "alias", alias=alias, version=version))

    async def unalias(self, name: str, alias: str) -> RepositoryView:
        """Forget an alias."""
        return await self._do(_control(name, "unalias", alias=alias))

    async def canary(self, name: str, version: int, percent: int) -> RepositoryView:
        """Give a version a part of the requests; 0 ends it, 100 puts it in use."""
        return await self._do(_control(name, "canary", version=version, percent=percent))

    async def promote(self, name: str, version: int | None = None) -> RepositoryView:
        """Put a version in use: the canary, else the newest, unless another is named."""
        return await self._do(_control(name, "promote", version=version))

    async def rollback(self, name: str) -> RepositoryView:
        """End the canaries; where there are none, go back to the version in use before."""
        view = await self.get(name)
        if not view.canaries:
            return await self.promote(name, _before(view))
        for version in view.canaries:
            view = await self.canary(name, int(version), 0)
        return view

    async def policy(self, name: str, policy: VersionPolicy) -> RepositoryView:
        """Say which versions workers keep ready."""
        return await self._do(_control(name, "policy", policy=policy.model_dump()))

    async def load(self, name: str) -> RepositoryView:
        """Have workers offer a model again."""
        return await self._do(_control(name, "load"))

    async def unload(self, name: str) -> RepositoryView:
        """Have workers offer a model no more; it stays in the repository."""
        return await self._do(_control(name, "unload"))


def version_of(view: RepositoryView, reference: str) -> VersionView:
    """Return the version that a reference means.

    Raises:
        NotFound: None.
    """
    _, at = split(reference)
    number = (
        view.aliases.get(at) or (int(at) if at.isdecimal() else 0) or (0 if at else view.current)
    )
    for version in view.versions:
        if version.version == number:
            return version
    known = ", ".join([*(str(item.version) for item in view.versions), *view.aliases])
    raise NotFound(f"there is no '{reference}'; '{view.name}' has {known}")


def _before(view: RepositoryView) -> int:
    """Return the version to go back to; named, it may be asked for twice.

    Raises:
        FailedPrecondition: There is none.
    """
    if not view.previous:
        raise FailedPrecondition(f"'{view.name}' has no version to go back to; promote one")
    return view.previous


def _new_folder(folder: Path | None, reference: str) -> Path:
    target = (folder or Path(split(reference)[0])).absolute()
    if target.exists() or target.is_symlink():
        raise AlreadyExists(f"'{target.name}' is there already; name another folder")
    return target


def _finish(fresh: Path, target: Path, version: VersionView) -> None:
    """Write the spec, and give the folder its name."""
    check_paths([file.path for file in version.files])
    document = version.spec.model_dump(mode="json", exclude_defaults=True)
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    (fresh / SPEC).write_text(text, encoding="utf-8")
    fresh.chmod(0o755)
    keep(fresh, target)


def _path(name: str) -> str:
    return f"/v1/models/{quote(name, safe='')}"


def _model(kind: type[Any]) -> Callable[[httpx.Response], Any]:
    return lambda answer: kind.model_validate_json(answer.content, strict=False)


def _put_part(data: bytes) -> Call[PartView]:
    headers = {"Content-Type": OCTETS}
    return Call(
        "POST", "/v1/artefacts", _model(PartView), headers=headers, content=data, patience_s=120.0
    )


def _get_part(sha256: str) -> Call[bytes]:
    return Call("GET", f"/v1/artefacts/{sha256}", lambda answer: answer.content, patience_s=120.0)


def _push(
    package: Package, files: list[ModelFile], *, percent: int, hold: bool, force: bool
) -> Call[PushView]:
    try:
        push = Push(spec=package.spec, files=tuple(files), percent=percent, hold=hold, force=force)
    except ValidationError as error:
        raise invalid(error) from error
    return _send(f"{_path(package.name)}/versions", push.model_dump(mode="json"), PushView, PUSH_S)


def _control(name: str, action: str, **details: Any) -> Call[RepositoryView]:
    try:
        order = ModelControl.model_validate({"action": action, **details})
    except ValidationError as error:
        raise invalid(error) from error
    body = order.model_dump(mode="json", exclude_defaults=True)
    return _send(f"{_path(name)}/control", body, RepositoryView)


def _send(
    path: str, document: Mapping[str, Any], kind: type[Any], patience_s: float = 0.0
) -> Call[Any]:
    headers = {"Content-Type": "application/json"}
    body = orjson.dumps(document)
    return Call(
        "POST", path, _model(kind), headers=headers, content=body, patience_s=patience_s + ANSWER_S
    )


def _list() -> Call[tuple[RepositoryView, ...]]:
    return Call("GET", "/v1/repository", lambda answer: _model(RepositoryList)(answer).models)


def _get(name: str) -> Call[RepositoryView]:
    return Call("GET", _path(name), _model(RepositoryView))


def _remove(reference: str, *, force: bool) -> Call[None]:
    name, at = split(reference)
    path = f"{_path(name)}/versions/{quote(at, safe='')}" if at else _path(name)
    params = {"force": "true"} if force else {}
    return Call("DELETE", path, lambda _: None, params)
