"""The model repository behind its API: push, change, remove, and what is there."""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from events.definitions import DefinitionStore
from events.model_folders import check_folder, draft, fetch, signature, sweep_folders
from events.models import ModelDirectory, WorkerCard
from events.packages import FileDigest, Package, packages
from events.repository import ModelRepository
from schemas.api import (
    ModelOffer,
    PushView,
    RepositoryView,
    VersionView,
)
from schemas.artefacts import check_paths, check_size
from schemas.catalogue import ModelSpec
from schemas.errors import (
    AlreadyExists,
    ClawdbotError,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    ModelUnavailable,
    NotFound,
)
from schemas.ids import DEFAULT_TENANT
from schemas.live_catalogue import LiveCatalogue
from schemas.pushes import check_signature, check_spec, digest_of, same_shape, vocabulary_of
from schemas.repository import (
    AT,
    ModelControl,
    ModelFile,
    ModelRecord,
    ModelVersion,
    Push,
    check_name,
    split,
)
from schemas.tokenizer_file import sanitized
from services.errors import WrongState
from services.repository import CatalogueWatch
from services.runtime import Clock
from services.telemetry import get_logger


log = get_logger()

USERS_NAMED_MAX = 5
"""Workflows that a refusal to remove a model names."""


@dataclass(frozen=True)
class ModelStore:
    """Changes the repository and shows it.

    Args:
        repository: Where models are.
        live: The catalogue as it is now.
        watch: Is told of what was changed here.
        definitions: Which models workflows use.
        directory: Which worker has what.
        clock: Tells when something was pushed.
        drafts: Folder for files while they are looked through.
        file_bytes_max: Most bytes of one file.
        push_bytes_max: Most bytes of all files of a version.
    """

    repository: ModelRepository
    live: LiveCatalogue
    watch: CatalogueWatch
    definitions: DefinitionStore
    directory: ModelDirectory
    clock: Clock
    drafts: Path
    file_bytes_max: int
    push_bytes_max: int
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """One version at a time is looked through: that takes disk and time."""

    async def begin(self) -> None:
        """Read the repository, and delete what a gateway left that was killed."""
        await asyncio.to_thread(sweep_folders, self.drafts, (), self.clock.now())
        await self.watch.begin()

    async def push(self, name: str, push: Push) -> PushView:
        """Make files that are stored already a version; the same content is the same version.

        Raises:
            InvalidArgument: A name, the spec or a file is not acceptable; names it.
            AlreadyExists: The catalogue's file has a model of this name.
            FailedPrecondition: A part is not stored, or the signature is another one than before.
            StoreFull, StoreUnavailable, Aborted: Try again later.
        """
        check_name(name)
        if name in self.live.base.models:
            raise AlreadyExists(
                f"the catalogue has a model '{name}' already; choose another name", field="name"
            )
        paths = [file.path for file in push.files]
        self._check_files(push.files, paths)
        check_spec(push.spec, paths)
        vocabulary_of(push.spec, push.files)
        await self._check_engine(push.spec)
        await self._renew(push.files)
        async with self._turn:
            await self._look_through(push)
        await self._renew(push.files)  # that may have taken long
        version = ModelVersion(
            version=0,
            digest=digest_of(push.spec, push.files),
            spec=push.spec,
            files=push.files,
            pushed_at=self.clock.now(),
        )
        record = await self._change(name, partial(_with_version, version=version, push=push))
        found = next(item for item in record.versions if item.digest == version.digest)
        log.info(
            "model_pushed",
            model=name,
            version=found.version,
            digest=found.digest,
            in_use=record.current,
            size_bytes=found.size_bytes,
        )
        return PushView(
            name=name,
            version=found.version,
            digest=found.digest,
            current=record.current,
            created=found.pushed_at == version.pushed_at,
        )

    async def follow(self, folder: Path | None) -> None:
        """Push the models of a folder, if there is one, then follow the repository for ever."""
        if folder is not None:
            for entry in await asyncio.to_thread(_entries, folder):
                await self._push_entry(entry)
        await self.watch.run()

    async def control(self, name: str, order: ModelControl) -> ModelRecord:
        """Carry an order out.

        Raises:
            NotFound: No such model, version or alias.
            ClawdbotError: The order does not fit, or the repository does not answer.
        """
        self._check_pushed(name)

        def obey(record: ModelRecord) -> ModelRecord:
            if not record.versions:
                raise _unknown(name)
            return record.obey(order)

        record = await self._change(name, obey)
        said = order.model_dump(exclude_defaults=True)
        log.info("model_changed", model=name, in_use=record.current, **said)
        return record

    async def remove(self, name: str, number: int | None, *, force: bool) -> None:
        """Remove a version, or all of a model.

        Raises:
            NotFound: It is not there.
            WrongState: An alias, a canary or a workflow needs it, and it is not forced.
        """
        self._check_pushed(name)
        workflows = [] if force else await self._workflows(name, number)

        def remove(record: ModelRecord) -> ModelRecord:
            if not record.versions:
                raise _unknown(name)
            users = list(workflows)
            if number is not None and not force:
                record.version(number)
                users += record.uses(number)
            if users:
                what = name if number is None else f"{name}{AT}{number}"
                raise WrongState(f"'{what}' is needed: {'; '.join(users)}; or force it")
            return record.removed(number)

        await self._change(name, remove)
        log.info("model_removed", model=name, version=number, forced=force)

    async def view(self, name: str) -> RepositoryView:
        """Show everything the repository has of a model.

        Raises:
            NotFound: Nothing.
        """
        record = await self.repository.get(DEFAULT_TENANT, check_name(name))
        if not record.versions:
            raise _unknown(name)
        return self.shown(record, await self.directory.cards(self.clock.now()))

    def shown(self, record: ModelRecord, cards: Iterable[WorkerCard]) -> RepositoryView:
        """Return a record as the API has it."""
        offered = {version.version for version in record.offered()}
        known = list(cards)
        return RepositoryView(
            name=record.name,
            current=record.current,
            previous=record.previous,
            canaries={str(item.version): item.percent for item in record.canaries},
            aliases=record.aliases,
            policy=record.policy,
            loaded=record.loaded,
            versions=tuple(
                VersionView(
                    version=item.version,
                    digest=item.digest,
                    size_bytes=item.size_bytes,
                    pushed_at=item.pushed_at,
                    offered=item.version in offered,
                    spec=item.spec,
                    files=item.files,
                    offers=tuple(offers_of(f"{record.name}{AT}{item.version}", known)),
                )
                for item in record.versions
            ),
        )

    async def _change(self, name: str, change: Callable[[ModelRecord], ModelRecord]) -> ModelRecord:
        record = await self.repository.change(DEFAULT_TENANT, name, change)
        if self.live.merge([record]):
            self.watch.tell()
        return record

    def _check_pushed(self, name: str) -> None:
        if name in self.live.base.models:
            raise WrongState(f"'{name}' is of the catalogue's file, which its operator changes")
        check_name(name)

    def _check_files(self, files: Iterable[ModelFile], paths: list[str]) -> None:
        try:
            check_paths(paths)
            for file in files:
                check_size(file.path, file.size_bytes, self.file_bytes_max)
        except InvalidArgument as error:
            raise InvalidArgument(error.message, field="files") from error
        total = sum(file.size_bytes for file in files)
        if total > self.push_bytes_max:
            raise InvalidArgument(
                f"a version has at most {self.push_bytes_max} bytes, this one {total}",
                field="files",
            )

    async def _push_entry(self, entry: Path) -> None:
        """Push what is new of one model; what cannot be pushed is said in the log and left out."""
        try:
            for package in await asyncio.to_thread(packages, entry):
                files = [await self._stored(package, path) for path in package.paths]
                await self.push(package.name, Push(spec=package.spec, files=tuple(files)))
        except (ClawdbotError, OSError) as error:
            log.warning("model_not_pushed", entry=entry.name, error=str(error))

    async def _stored(self, package: Package, path: str) -> ModelFile:
        """Store the parts of a file, and return what names it."""
        digest, parts = FileDigest(path), package.parts(path)
        while data := await asyncio.to_thread(next, parts, b""):
            digest.add(data, await self.repository.put_part(DEFAULT_TENANT, data))
        return digest.file()

    async def _check_engine(self, spec: ModelSpec) -> None:
        """Refuse an engine that none of the workers there are has, as far as they say."""
        cards = await self.directory.cards(self.clock.now())
        known = {name for card in cards if card.modality == spec.modality for name in card.engines}
        if known and spec.engine not in known:
            raise InvalidArgument(
                f"no {spec.modality} worker has an engine '{spec.engine[:64]}'; they have "
                f"{', '.join(sorted(known))}",
                field="spec.engine",
            )

    async def _renew(self, files: Iterable[ModelFile]) -> None:
        """Keep the parts from being swept before a version names them."""
        for part in sorted({part for file in files for part in file.parts}):
            if not await self.repository.renew_part(DEFAULT_TENANT, part):
                raise FailedPrecondition(f"the part {part} is not stored; send it first")

    async def _look_through(self, push: Push) -> None:
        """Read every file back and refuse what is not what it says, or not safe."""
        with draft(self.drafts) as folder:
            try:
                await fetch(self.repository, DEFAULT_TENANT, push.files, folder)
            except (DataLoss, NotFound) as error:
                raise InvalidArgument(error.message, field="files") from error
            try:
                await asyncio.to_thread(check_folder, folder, push.files)
            except InvalidArgument as error:
                raise InvalidArgument(error.message, field="files") from error
            if push.spec.engine == "onnx":
                await asyncio.to_thread(_check_onnx, folder, push)
            if push.spec.vocabulary is not None and push.spec.vocabulary.is_whole:
                await asyncio.to_thread(_check_tokenizer, folder, push)

    async def _workflows(self, name: str, number: int | None) -> list[str]:
        """Return which deployed workflows name a model, or a version of it."""
        found: list[str] = []
        for workflow in await self.definitions.all_newest(DEFAULT_TENANT):
            names = {route.model for node in workflow.plan.worked_on() for route in node.routes}
            if any(self._names(model, name, number) for model in names):
                found.append(f"the workflow '{workflow.name}'")
        more = len(found) - USERS_NAMED_MAX
        return found[:USERS_NAMED_MAX] + ([f"{more} more workflows"] if more > 0 else [])

    def _names(self, model: str, name: str, number: int | None) -> bool:
        """Tell whether a node's model is this one, and this version where one is given."""
        of, reference = split(model)
        if of != name or number is None:
            return of == name
        if reference:
            return reference == str(number)  # what an alias means, the record knows
        record = self.live.record(name)
        return record is not None and [item.version for item in record.versions] == [number]


def offers_of(name: str, cards: Iterable[WorkerCard]) -> Iterator[ModelOffer]:
    """Yield what workers say of a model."""
    for card in cards:
        for offer in card.offers:
            if offer.model == name:
                yield ModelOffer(worker=card.worker, **offer.model_dump(exclude={"model"}))


def _with_version(record: ModelRecord, *, version: ModelVersion, push: Push) -> ModelRecord:
    """Return a record with one more version, or as it was where it has this content."""
    if any(item.digest == version.digest for item in record.versions):
        return record
    if record.versions and not push.force:
        before = record.versions[-1]
        if not same_shape(before.spec, version.spec):
            raise WrongState(
                f"version {before.version} has other inputs or outputs; push this under another "
                "name, or force it",
                field="spec",
            )
    numbered = version.model_copy(update={"version": record.next_version})
    return record.pushed(numbered, push)


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("[!.]*"))


def _check_onnx(folder: Path, push: Push) -> None:
    source = push.spec.source
    if source is None or source not in {file.path for file in push.files}:
        raise InvalidArgument("name the .onnx file", field="spec.source")
    check_signature(push.spec, signature(folder, source))


def _check_tokenizer(folder: Path, push: Push) -> None:
    file = vocabulary_of(push.spec, push.files)
    assert file is not None, "the spec was looked through before"
    try:
        sanitized(file.path, (folder / file.path).read_bytes())
    except ModelUnavailable as error:
        raise InvalidArgument(error.message, field="files") from error


def _unknown(name: str) -> NotFound:
    return NotFound(f"the repository has no model '{name[:64]}'", field="name")
