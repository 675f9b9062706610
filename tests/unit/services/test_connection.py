"""Which server is asked after a loss."""

import random
from urllib.parse import urlparse

from nats.aio.client import Server

from services.connection import RECONNECT_WAIT_S, NextServer


SERVERS = [Server(urlparse(f"nats://n{number}:4222")) for number in range(3)]


def _asked(following: NextServer, times: int) -> list[tuple[str, float]]:
    chosen = [following.choose(SERVERS, {}) for _ in range(times)]
    return [(server.uri.netloc, wait_s) for server, wait_s in chosen]


def test_the_lost_one_comes_last() -> None:
    """The others first and at once, then all again, with a pause before each."""
    for seed in range(20):
        following = NextServer(random.Random(seed))
        following.connected("n1:4222")
        first = _asked(following, 3)
        assert [0.0] * 3 == [wait_s for _, wait_s in first]
        assert "n1:4222" == first[2][0]
        second = _asked(following, 3)
        assert [RECONNECT_WAIT_S] * 3 == [wait_s for _, wait_s in second]
        assert {"n0:4222", "n1:4222", "n2:4222"} == {name for name, _ in second}


def test_clients_spread() -> None:
    """Those who lose the same server do not all go to the same other one."""
    found = set()
    for seed in range(20):
        following = NextServer(random.Random(seed))
        following.connected("n1:4222")
        found.add(_asked(following, 1)[0][0])
    assert {"n0:4222", "n2:4222"} == found


def test_what_was_tried_is_forgotten() -> None:
    """After a reconnect the next loss begins anew."""
    following = NextServer(random.Random(1))
    following.connected("n1:4222")
    _asked(following, 5)
    following.connected("n2:4222")
    asked = _asked(following, 3)
    assert [0.0] * 3 == [wait_s for _, wait_s in asked]
    assert "n2:4222" == asked[2][0]


def test_one_server_is_asked_at_once() -> None:
    """Without a cluster the only server is asked, first without a pause."""
    following = NextServer(random.Random(1))
    following.connected("n0:4222")
    waits = [following.choose(SERVERS[:1], {})[1] for _ in range(3)]
    assert [0.0, RECONNECT_WAIT_S, RECONNECT_WAIT_S] == waits
