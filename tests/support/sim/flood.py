"""The scenario in which one tenant floods the queue of submissions: the others go past."""

import asyncio
from pathlib import Path
from typing import Any

import nats
from nats.aio.client import Client as Nats
from typing_extensions import override

from events.definitions import DefinitionStore, DeployedWorkflow
from events.streams import EVENTS, StreamLimits, ensure
from events.subjects import run_key, submit
from schemas.catalogue import load
from schemas.messages import Header
from schemas.submission import pack_inputs
from tests.support.checker import Recorded
from tests.support.sim.scenario import Scenario
from tests.support.sim.seams import CATALOGUE
from tests.support.sim.world import MIB, SHARED, URL
from tests.support.workflows import compiled


FLOOD, HEAVY = 300, 90
IN_FLIGHT = 16
SINGLES = {"quiet": ("quiet", "plain"), "urgent": ("loud", "urgent"), "other": ("loud", "other")}
"""Runs that are submitted last, one each: tenant and workflow."""
SOON = 60
"""Of the flood so many may begin before them: what is in work, and what a look misses."""
PATIENCE_S = 120.0


class Flood(Scenario):
    """A tenant floods the queue; behind it come three times its weight, and single submissions.

    In every other seed an orchestrator may be killed: what it had comes again after a while.
    """

    def __init__(self, seed: int, folder: Path) -> None:
        super().__init__(seed, folder)
        if seed % 2 == 0:
            self.world.faults.failpoint = ""

    @override
    def verdict(self) -> tuple[list[str], dict[str, list[Recorded]]]:
        return self._wrong(self._order()), {}

    @override
    async def _main(self) -> None:
        world = self.world
        nc = await nats.connect(URL)
        await ensure(nc, StreamLimits(events_bytes_max=256 * MIB, ack_wait_s=SHARED["ack_wait_s"]))
        definitions = DefinitionStore(nc.jetstream())
        for tenant, name in {("loud", "plain"), ("heavy", "plain"), *SINGLES.values()}:
            await definitions.deploy(tenant, _deployed(name))
        for number in range(FLOOD):
            await _submit(nc, "loud", "plain", f"loud-{number}")
        for number in range(HEAVY):
            await _submit(nc, "heavy", "plain", f"heavy-{number}")
        for run_id, (tenant, workflow) in SINGLES.items():
            await _submit(nc, tenant, workflow, run_id)
        await nc.close()
        for number in range(2):
            world.orchestrator(
                number,
                in_flight_max=IN_FLIGHT,
                share_backlog_min=IN_FLIGHT,
                share_weights={"heavy": 3.0},
            )
        all_of_them = FLOOD + HEAVY + len(SINGLES)
        while len(self._order()) < all_of_them and world.now() < PATIENCE_S:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.2)

    def _order(self) -> list[str]:
        """Return the runs in the order in which they began."""
        stream = self.world.server.jetstream.streams[EVENTS]
        return list(dict.fromkeys(run_key(item.subject).run_id for item in stream.following(1)))

    def _wrong(self, order: list[str]) -> list[str]:
        wrong = [] if len(order) == FLOOD + HEAVY + len(SINGLES) else [f"{len(order)} runs began"]
        flood = [run_id.startswith("loud-") for run_id in order]
        for run_id in SINGLES:
            before = sum(flood[: order.index(run_id)]) if run_id in order else FLOOD
            if before > SOON and not self.world.crashes:
                wrong.append(f"{run_id} waited for {before} of the flood")
        heavy = [place for place, run_id in enumerate(order) if run_id.startswith("heavy-")]
        most = heavy[: HEAVY * 4 // 5]  # not what an orchestrator had that was killed
        if (before := sum(flood[: max(most, default=-1)])) > HEAVY / 3 + SOON:
            wrong.append(f"{before} of the flood began before most of what has thrice its weight")
        return wrong


async def _submit(nc: Nats, tenant: str, workflow: str, run_id: str) -> None:
    headers = {Header.RUN_ID: run_id, Header.CONTENT_TYPE: "application/msgpack"}
    body = pack_inputs({"text": run_id})
    await nc.jetstream().publish(submit(tenant, workflow), body, headers=headers)


def _deployed(name: str) -> DeployedWorkflow:
    document: dict[str, Any] = {
        "nodes": [{"id": "say", "type": "set", "params": {"values": {"text": "input.text"}}}],
        "priority": "high" if name == "urgent" else "normal",
    }
    return compiled(name, document, load(CATALOGUE))
