"""What was in memory is gone when all servers were down, and the services notice."""

from pathlib import Path

import pytest

from events.streams import StreamLimits
from schemas.errors import Unavailable
from services.runtime import Bus
from tests.support.cluster import NatsCluster
from tests.support.nats import NatsServer
from tests.support.wait import until


pytestmark = pytest.mark.nats
MIB = 1024 * 1024


async def generation(bus: Bus) -> str:
    """Return which life the memory streams are in, once the servers know."""
    found: list[str] = []

    async def told() -> bool:
        try:
            found.append(await bus.generation())
        except Unavailable:
            return False
        return True

    await until(told, what="the memory streams", timeout_s=60)
    return found[-1]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("replicas", [1, pytest.param(3, marks=pytest.mark.slow)])
async def test_a_server_that_comes_back_empty_is_another_one(tmp_path: Path, replicas: int) -> None:
    """A single one makes the streams anew; a cluster remembers when it made them."""
    folders = [tmp_path / str(number) for number in range(replicas)]
    for folder in folders:
        folder.mkdir()
    limits = StreamLimits(replicas, *(256 * MIB for _ in range(3)))
    with NatsServer(folders[0]) if replicas == 1 else NatsCluster(folders) as servers:
        every = servers.servers if isinstance(servers, NatsCluster) else [servers]
        bus = await Bus.connect(servers.url, "test", limits)
        try:
            before = await generation(bus)
            assert before == await generation(bus)
            for server in every:
                server.kill()
            servers.start()
            assert before != await generation(bus)
        finally:
            await bus.close()
