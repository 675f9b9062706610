"""Where the bundles of retired runs are kept."""

import asyncio
import re
from abc import ABC, abstractmethod
from pathlib import Path

from typing_extensions import override

from events.files import write_durably
from events.subjects import RunKey
from schemas.errors import InvalidArgument, StoreUnavailable
from schemas.ids import TOKEN


class Archive(ABC):
    """Keeps bundles."""

    @abstractmethod
    async def keep(self, key: RunKey, bundle: bytes) -> None:
        """Keep a run's bundle, durably when it returns; a newer one replaces it.

        Raises:
            StoreUnavailable: It cannot be kept now.
        """

    @abstractmethod
    async def get(self, key: RunKey) -> bytes | None:
        """Return a run's bundle; None when there is none.

        Raises:
            StoreUnavailable: The archive cannot be read now.
        """


class MemoryArchive(Archive):
    """The twin for tests."""

    def __init__(self) -> None:
        self.bundles: dict[RunKey, bytes] = {}

    @override
    async def keep(self, key: RunKey, bundle: bytes) -> None:
        self.bundles[key] = bundle

    @override
    async def get(self, key: RunKey) -> bytes | None:
        return self.bundles.get(key)


class DirectoryArchive(Archive):
    """Files `<tenant>/<run>.clawdbot.zip` under a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def path(self, key: RunKey) -> Path:
        """Return where a run's bundle is.

        Raises:
            InvalidArgument: Not an id of ours; it never becomes part of a path.
        """
        if not (re.fullmatch(TOKEN, key.tenant) and re.fullmatch(TOKEN, key.run_id)):
            raise InvalidArgument("not the id of a run")
        return self._directory / key.tenant / f"{key.run_id}.clawdbot.zip"

    @override
    async def keep(self, key: RunKey, bundle: bytes) -> None:
        try:
            await asyncio.to_thread(write_durably, self.path(key), bundle)
        except OSError as error:
            raise StoreUnavailable("the archive cannot be written") from error

    @override
    async def get(self, key: RunKey) -> bytes | None:
        try:
            return await asyncio.to_thread(self.path(key).read_bytes)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreUnavailable("the archive cannot be read") from error
