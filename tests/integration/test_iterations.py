"""Ten thousand iterations in one run: flat in time, bounded in memory."""

from pathlib import Path

import nats
import pytest

from bench import iterations
from tests.support.mesh import Mesh
from tests.support.nats import NatsServer


pytestmark = [pytest.mark.nats, pytest.mark.slow]
MASTER_TEXT = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
SLOWER = 4.0
"""How many times more the last tenth may cost on a machine that others use too."""


@pytest.mark.timeout(900)
async def test_the_last_iteration_costs_what_the_first_did(tmp_path: Path) -> None:
    """Of a loop and of a foreach, each with a task for a worker in every iteration."""
    with NatsServer(tmp_path) as server:
        mesh = Mesh(tmp_path / "mesh", server.url, {"master_key": MASTER_TEXT})
        mesh.add_core()
        try:
            mesh.start()
            nc = await nats.connect(server.url)
            rows = await iterations.measure(nc, mesh, bytes(32))
            await nc.close()
        finally:
            mesh.stop()
    for row in rows:
        print(row)  # noqa: T201 - the figures
        assert ("completed", iterations.ITERATIONS) == (row["status"], row["iterations"])
        assert row["orchestrator_grew_mib"] <= iterations.GROWTH_MIB
        costs = row["ms_each_by_tenth"]
        assert costs[-1] <= SLOWER * costs[1]
