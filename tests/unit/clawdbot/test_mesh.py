import asyncio
from pathlib import Path

from clawdbot.mesh import Mesh, MeshOptions


def mesh(metrics_port: int) -> Mesh:
    """A mesh that is not started."""
    options = MeshOptions(data_dir=Path(), metrics_port=metrics_port)
    return Mesh(options, lambda _name, _text: None, asyncio.TaskGroup())


def test_every_service_has_a_port_of_its_own_for_metrics() -> None:
    """One after the other from the first; who comes back gets the same one again."""
    started = mesh(9100)
    names = ("orchestrator", "gateway", "worker-text-0", "gateway")
    assert [9100, 9101, 9102, 9101] == [started.metrics_port(name) for name in names]


def test_without_a_port_nobody_serves_metrics() -> None:
    """0 stays 0 for all."""
    assert [0, 0] == [mesh(0).metrics_port(name) for name in ("orchestrator", "gateway")]
