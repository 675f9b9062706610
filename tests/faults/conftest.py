"""What tests that break things share."""

from collections.abc import AsyncIterator

import nats
import pytest
from nats.aio.client import Client as Nats

from tests.support.nats import NatsServer


@pytest.fixture
async def patient(nats_server: NatsServer) -> AsyncIterator[Nats]:
    """A connection that never gives up."""
    nc = await nats.connect(
        nats_server.url, reconnect_time_wait=0.05, max_reconnect_attempts=-1, ping_interval=2
    )
    yield nc
    await nc.close()
