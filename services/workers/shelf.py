"""The repository's models on this machine: fetched, checked, kept ready, taken away.

Files lie in a cache that is named by content and shared by the workers of a data directory.
"""

import asyncio
import shutil
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from events.model_folders import draft, fetch, is_whole, keep, sweep_folders
from events.models import Offer
from events.repository import ModelRepository
from schemas.errors import ClawdbotError, ModelUnavailable, NotFound
from schemas.ids import DEFAULT_TENANT
from schemas.live_catalogue import LiveCatalogue, spec_of
from schemas.repository import AT, ModelVersion, split
from services.runtime import SystemClock
from services.telemetry import get_logger
from services.workers.models import Models


log = get_logger()

RETRY_S = 5.0
"""After a model could not be fetched."""


@dataclass(frozen=True)
class Cache:
    """Where fetched files lie.

    Args:
        folder: Below it there is one folder for each version's content.
        bytes_max: Most bytes of all of them.
    """

    folder: Path
    bytes_max: int

    def of(self, version: ModelVersion) -> Path:
        """Return where a version's files are, or will be."""
        return self.folder / version.digest


class Shelf:
    """Keeps the models of one worker in step with the repository.

    Args:
        live: The catalogue as it is now.
        repository: Where files come from.
        models: What the worker runs.
        modality: Only these are its own.
        cache: Where files lie.
    """

    def __init__(
        self,
        live: LiveCatalogue,
        repository: ModelRepository,
        models: Models,
        modality: str,
        cache: Cache,
    ) -> None:
        self.news = asyncio.Event()
        """Set when what is offered here changed."""
        self._live = live
        self._repository = repository
        self._models = models
        self._modality = modality
        self._cache = cache
        self._held: dict[str, ModelVersion] = {}
        """Versions that are in `models`, by concrete name, the longest unused first."""
        self._failed: dict[str, str] = {}
        """Why a version is not there, by concrete name."""
        self._checked: set[str] = set()
        """Digests that this process has found whole."""
        self._coming: dict[str, int] = {}
        """Bytes of versions that are being fetched, by digest."""
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def at_hand(self, name: str, key: str) -> str:
        """Return the concrete name of a model that can be asked for now, fetching it if need be.

        Args:
            name: As a task or a request has it: `iris`, `iris@3`, or one of the catalogue's own.
            key: Of the run or request; decides between versions.

        Raises:
            NotFound: No such version or alias.
            ModelUnavailable: It is unloaded, or cannot be fetched.
            StoreUnavailable: The repository does not answer.
        """
        if name in self._live.base.models:
            return name
        model, reference = split(name)
        if reference and self._is_unknown(name):  # who asks may have heard of it before us
            self._live.merge([await self._repository.get(DEFAULT_TENANT, model)])
        concrete = self._live.concrete(name, key)
        version = self._live.version(concrete)
        if version is None or version.spec.modality != self._modality:
            return concrete
        record = self._live.record(model)
        if record is not None and not record.loaded:
            raise ModelUnavailable(f"model '{model}' is unloaded; load it first")
        await self._hold(concrete, version)
        return concrete

    async def keep(self, changed: asyncio.Event) -> None:
        """Follow the repository for ever.

        Args:
            changed: Set when the repository changed.
        """
        await asyncio.to_thread(self._tidy)
        while True:
            changed.clear()
            await self.sync()
            self.news.set()
            try:
                async with asyncio.timeout(RETRY_S if self._failed else None):
                    await changed.wait()
            except TimeoutError:
                continue  # perhaps it works now

    async def sync(self) -> None:
        """Take what is offered now, and let go of what is not there any more."""
        offered = {
            f"{name}{AT}{version.version}": version
            for name, record in self._live.records.items()
            for version in record.offered()
            if version.spec.modality == self._modality
        }
        for name in [name for name in self._held if not self._remains(name)]:
            self._models.withdraw(name)
            version = self._held.pop(name)
            log.info("model_withdrawn", model=name)
            if self._is_gone(version):
                await asyncio.to_thread(shutil.rmtree, self._cache.of(version), True)
        self._failed = {name: why for name, why in self._failed.items() if name in offered}
        for name, version in offered.items():
            try:
                await self._hold(name, version)
            except ClawdbotError as error:
                if self._failed.get(name) != error.message:
                    log.warning("model_not_fetched", model=name, error=error.message)
                self._failed[name] = error.message

    def offers(self) -> tuple[Offer, ...]:
        """Return what this worker would run, had it been able to fetch it."""
        return tuple(
            Offer(model=name, served_by=name, reason=reason, available=False)
            for name, reason in self._failed.items()
        )

    async def _hold(self, name: str, version: ModelVersion) -> None:
        """Have a version's files here and its spec among the models.

        Raises:
            ModelUnavailable: It cannot be.
            ClawdbotError: It cannot be fetched.
        """
        folder = self._cache.of(version)
        if name in self._held and folder.is_dir():
            self._held[name] = self._held.pop(name)
            return
        async with self._locks[version.digest]:
            try:
                await self._fetch(version, folder)
            except NotFound as error:
                raise ModelUnavailable(f"'{name}' cannot run here: {error.message}") from error
            except OSError as error:
                raise ModelUnavailable(
                    f"'{name}' cannot be kept here: {error.strerror}", cause=str(error)
                ) from error
            if name not in self._held:
                self._models.place(name, spec_of(version), folder)
                self._held[name] = version
                self._failed.pop(name, None)
                log.info("model_placed", model=name, size_bytes=version.size_bytes)
                await self._models.preload([name])

    async def _fetch(self, version: ModelVersion, folder: Path) -> None:
        there = await asyncio.to_thread(folder.is_dir)
        if there and version.digest not in self._checked:
            there = await asyncio.to_thread(is_whole, folder, version.files)
            if not there:
                log.warning("cache_damaged", digest=version.digest)
                await asyncio.to_thread(shutil.rmtree, folder)
        if not there:
            self._coming[version.digest] = version.size_bytes
            try:
                await self._make_room()
                with draft(self._cache.folder) as fresh:
                    await fetch(self._repository, DEFAULT_TENANT, version.files, fresh)
                    keep(fresh, folder)
            finally:
                del self._coming[version.digest]
        self._checked.add(version.digest)

    async def _make_room(self) -> None:
        """Delete what was not used for longest until all that is coming fits.

        Raises:
            ModelUnavailable: It does not fit beside what is offered.
        """
        there = await asyncio.to_thread(self._there)
        needed = {item.digest for one in self._live.records.values() for item in one.offered()}
        total = sum(item.size_bytes for item in there.values()) + sum(self._coming.values())
        held = {item.digest: name for name, item in self._held.items()}
        for digest in [*(set(there) - held.keys()), *held]:
            if total <= self._cache.bytes_max:
                return
            old = there.get(digest)
            if old is None or digest in needed or old.spec.modality != self._modality:
                continue
            if digest in held and self._held.pop(held[digest], None) is not None:
                self._models.withdraw(held[digest])
            await asyncio.to_thread(shutil.rmtree, self._cache.of(old), True)
            total -= old.size_bytes
        if total > self._cache.bytes_max:
            raise ModelUnavailable(
                f"the models' files take more than {self._cache.bytes_max} bytes here; "
                "CLAWDBOT_MODEL_CACHE_BYTES_MAX is the limit"
            )

    def _there(self) -> dict[str, ModelVersion]:
        """Return the versions whose files are in the cache, by digest."""
        versions = [item for one in self._live.records.values() for item in one.versions]
        return {item.digest: item for item in versions if self._cache.of(item).is_dir()}

    def _tidy(self) -> None:
        """Delete what a process left that was killed, and what the repository has no more."""
        known = {item.digest for record in self._live.records.values() for item in record.versions}
        sweep_folders(self._cache.folder, known, SystemClock().now())

    def _is_unknown(self, name: str) -> bool:
        model, _ = split(name)
        if model in self._live.base.models:
            return False
        try:
            return self._live.version(name) is None
        except NotFound:
            return True

    def _remains(self, name: str) -> bool:
        """Tell whether a held version is in the repository still, and loaded."""
        model, _ = split(name)
        record = self._live.record(model)
        if record is None or not record.loaded:
            return False
        return not self._is_unknown(name)

    def _is_gone(self, version: ModelVersion) -> bool:
        """Tell whether no version of whichever model has this content any more."""
        return all(
            item.digest != version.digest
            for record in self._live.records.values()
            for item in record.versions
        )
