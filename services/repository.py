"""Keeps a service's catalogue in step with the model repository.

The server tells of each change; what is missed, because the connection broke, is read again.
"""

import asyncio
from typing import Protocol

from events.repository import ModelRepository, read_record
from events.subjects import every, tenant_and_name
from schemas.errors import StoreUnavailable
from schemas.ids import DEFAULT_TENANT
from schemas.live_catalogue import LiveCatalogue
from services.runtime import Bus
from services.telemetry import get_logger


log = get_logger()

RECHECK_S = 5.0
"""How often it is looked whether a change was missed."""


class _Told(Protocol):
    """A message of the bus."""

    subject: str
    data: bytes


class CatalogueWatch:
    """Follows the repository.

    Args:
        bus: Tells of changes.
        repository: Has them.
        live: The service's catalogue.
    """

    def __init__(self, bus: Bus, repository: ModelRepository, live: LiveCatalogue) -> None:
        self._bus = bus
        self._repository = repository
        self._live = live
        self._read_at = -1
        self._settled = False
        self._listeners: list[asyncio.Event] = []

    def listen(self) -> asyncio.Event:
        """Return an event that is set at each change; who waits for it clears it."""
        event = asyncio.Event()
        self._listeners.append(event)
        return event

    async def begin(self) -> None:
        """Read the whole repository, however long the bus takes, and begin to listen."""
        await self._bus.nc.subscribe(every("model", "*"), cb=self._on_change)
        await self._bus.patiently(self._first)

    async def run(self) -> None:
        """Look for missed changes, for ever."""
        while True:
            await self._bus.changed(RECHECK_S)
            try:
                await self.refresh()
            except StoreUnavailable as error:
                log.info("repository_postponed", error=error.message)

    async def refresh(self) -> None:
        """Read what changed since the last time.

        A replica that lags behind may answer with less than the stream's leader counts, so what is
        new is read once more at the next look.

        Raises:
            StoreUnavailable: The repository does not answer.
        """
        revision = await self._repository.revision()
        if revision == self._read_at and self._settled:
            return
        self._settled = revision == self._read_at
        self._read_at = revision
        if self._live.merge(await self._repository.records(DEFAULT_TENANT)):
            self.tell()

    def tell(self) -> None:
        """Say that the catalogue changed."""
        for event in self._listeners:
            event.set()

    async def _first(self) -> None:
        try:
            await self.refresh()
        except StoreUnavailable:  # a mesh from before there was a repository
            await self._bus.ensure()
            await self.refresh()

    async def _on_change(self, message: _Told) -> None:
        tenant, _ = tenant_and_name(message.subject)
        record = read_record(message.data)
        if record is None:
            log.warning("record_unreadable", subject=message.subject)
        elif tenant == DEFAULT_TENANT and self._live.merge([record]):
            self.tell()
