"""What each process holds while it idles without a model."""

import asyncio
from pathlib import Path
from typing import Any

from tests.support.mesh import Mesh


GOAL_MIB = 100
SETTLE_S = 2.0


def resident_mib(pid: int) -> float:
    """Return a process's resident memory, MiB. Source: proc(5)."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


async def measure(mesh: Mesh) -> list[dict[str, Any]]:
    """Look at every service of a mesh that has just started."""
    await asyncio.sleep(SETTLE_S)
    sizes = {
        name: round(resident_mib(service.process.pid), 1)
        for name, service in mesh.services.items()
        if service.process is not None
    }
    return [
        {
            "scenario": "idle_memory",
            "mib": sizes,
            "goal": f"each <= {GOAL_MIB} MiB",
            "met": max(sizes.values()) <= GOAL_MIB,
        }
    ]
