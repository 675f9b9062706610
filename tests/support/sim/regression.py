"""The scenario in which the server comes back with an older copy of the log: it must be refused."""

import asyncio
import copy
from typing import Any

import orjson
from typing_extensions import override

from events.marks import DOCUMENT
from events.streams import EVENTS, HISTORY
from schemas.messages import Control
from tests.support.checker import Recorded
from tests.support.sim.scenario import Scenario
from tests.support.sim.streams import Stream
from tests.support.sim.workloads import Wish


COPIED_AT, RESTORED_AT, JUDGED_AT = 1.0, 6.0, 40.0
"""Seconds: the copy is made, comes back, and must have been refused (target T8: 30 s)."""


class Regression(Scenario):
    """Runs start before and after the copy was made, and after it came back."""

    def __init__(self, seed: int, folder: Any) -> None:
        super().__init__(seed, folder)
        late = Wish("linear", {"text": "late"}, None)
        early = Wish("asked", {"text": "a"}, None, controls=((9.0, Control(action="cancel")),))
        self.clients[0].wishes = {f"r{number}": early for number in range(3)}
        self.clients[1].wishes = {f"s{number}": late for number in range(8)}
        self._copy: Stream | None = None
        self._wrong: list[str] = []

    @override
    def verdict(self) -> tuple[list[str], dict[str, list[Recorded]]]:
        return self._wrong, {}

    @override
    async def _main(self) -> None:
        world, streams = self.world, self.world.server.jetstream.streams
        await self._set_up()
        self._start()
        await asyncio.sleep(COPIED_AT)
        old = copy.deepcopy(streams[EVENTS])
        await asyncio.sleep(RESTORED_AT - COPIED_AT)
        lost = streams[EVENTS].last_seq - old.last_seq
        world.restart_server()
        streams[EVENTS] = old
        before = old.last_seq
        await asyncio.sleep(JUDGED_AT - RESTORED_AT)
        if not lost:
            return  # nothing was committed meanwhile: it is the same log
        marks = streams[f"KV_{HISTORY}"].last_of(f"$KV.{HISTORY}.{DOCUMENT}")
        refused = orjson.loads(marks.data)["refused"] if marks else ""
        if not refused:
            self._wrong.append(f"{lost} commits are gone and nobody says so")
        if old.last_seq > before:
            self._wrong.append(f"{old.last_seq - before} commits were added to an older copy")
