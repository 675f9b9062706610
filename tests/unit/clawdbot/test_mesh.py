"""The mesh on one machine, as far as it can be seen without starting it."""

import asyncio
from pathlib import Path

import pytest

from clawdbot import ports
from clawdbot.embedded import complaint
from clawdbot.mesh import Mesh, MeshOptions
from clawdbot.supervisor import backoff_s, failures_after, turn_over
from schemas.errors import FailedPrecondition


def mesh(metrics_port: int) -> Mesh:
    """A mesh that is not started."""
    options = MeshOptions(data_dir=Path(), metrics_port=metrics_port)
    return Mesh(options, lambda _name, _text: None, asyncio.TaskGroup())


def test_every_service_has_a_port_of_its_own_for_metrics() -> None:
    """One after the other from the first; who comes back gets the same one again."""
    started = mesh(9100)
    names = ("orchestrator", "gateway", "worker-text-0", "gateway")
    assert [9100, 9101, 9102, 9101] == [started.metrics_port(name) for name in names]


def test_a_port_for_metrics_is_used_again_when_its_worker_is_gone() -> None:
    """And never twice."""
    started = mesh(9100)
    for name in ("orchestrator", "worker-text-0", "worker-text-1", "worker-audio-1"):
        started.metrics_port(name)
    del started.metrics_ports["worker-text-1"]
    assert 9102 == started.metrics_port("worker-text-2")
    assert 9104 == started.metrics_port("worker-text-3")


def test_without_a_port_every_service_takes_a_free_one() -> None:
    """The same one when it is started again."""
    started = mesh(0)
    assert [0, 0] == [started.metrics_port(name) for name in ("orchestrator", "gateway")]
    started.metrics_ports["gateway"] = 41234
    assert 41234 == started.metrics_port("gateway")


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),  # noqa: S104 - a value
        ("::", "http://[::1]:80"),
        ("::1", "http://[::1]:80"),
        ("box", "http://box:80"),
    ],
)
def test_the_address_is_one_that_a_browser_takes(host: str, url: str) -> None:
    """IPv6 in brackets, this machine for all addresses."""
    assert url == ports.url(host, 80)


def test_a_server_that_does_not_start_says_why_in_one_line() -> None:
    """The last fatal line of its log, not the log."""
    log = "[1] 2026/11/25 [INF] Version: 2\n[1] 2026/11/25 [FTL] bind: address already in use\n"
    assert "bind: address already in use" == complaint(log)
    assert "no such flag" == complaint(" no such flag\n")


def test_a_log_begins_anew_when_it_has_grown(tmp_path: Path) -> None:
    """What was in it is kept once; whoever holds it open writes on at its beginning."""
    path = tmp_path / "gateway.log"
    with path.open("ab", buffering=0) as log:
        log.write(b"old\n")
        turn_over(path, 4)
        assert b"old\n" == path.read_bytes()
        turn_over(path, 3)
        log.write(b"new\n")
    assert (b"new\n", b"old\n") == (path.read_bytes(), (tmp_path / "gateway.log.1").read_bytes())


@pytest.mark.parametrize("address", ["127.0.0.1:9", "nats://me:secret@127.0.0.1:9, 127.0.0.1:7"])
async def test_a_server_that_nobody_runs_is_said_at_once(address: str) -> None:
    """Where it was looked for, but no password."""
    with pytest.raises(FailedPrecondition, match=r"127\.0\.0\.1:9") as refused:
        await ports.check_reachable(address)
    assert "secret" not in refused.value.message


async def test_a_malformed_address_is_no_server() -> None:
    """The error shows one that would do."""
    with pytest.raises(FailedPrecondition, match="nats://host:4222"):
        await ports.check_reachable("nats://host:port")


def test_what_ran_steadily_is_started_again_at_once() -> None:
    """What fails again and again waits longer and longer, up to a bound."""
    failures, waits = 0, []
    for ran_s in (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 3600.0, 1.0):
        failures = failures_after(failures, ran_s)
        waits.append(backoff_s(failures))
    assert [0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 10.0, 0.2, 0.5] == waits
