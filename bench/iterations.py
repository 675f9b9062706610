"""Ten thousand iterations in one run: what each costs from the first to the last, and in memory."""

import asyncio
import itertools
from typing import Any

from nats.aio.client import Client as Nats
from nats.js.errors import NotFoundError

from bench.memory import resident_mib
from events.catalog import ScopeClosed
from events.jetstream import JetStreamEventStore
from events.keys import JetStreamKeyRing
from events.store import History
from events.streams import EVENTS
from events.subjects import RunKey, event, submit
from schemas.ids import DEFAULT_TENANT, new_id
from schemas.messages import Header
from schemas.submission import pack_inputs
from tests.support.mesh import Mesh
from tests.support.play import control, graph, model
from tests.support.wait import until
from tests.support.workflows import deploy


ITERATIONS = 10_000
PARTS = 10
PATIENCE_S = 900.0
LOOK_S = 0.5
FLAT = 1.5
"""The last tenth may cost this many times the second one; the first one warms up."""
GROWTH_MIB = 64


def loop(count: int) -> dict[str, Any]:
    """Return a loop whose every iteration is a task of a worker."""
    return graph(
        control(
            "many",
            "loop",
            while_=f"input.index < {count}",
            max_iterations=count,
            body=graph(model("n", "str(input.index)")),
        )
    )


def foreach(count: int) -> dict[str, Any]:
    """Return a foreach whose every item is a task of a worker."""
    items = f"range({count})"
    body = graph(model("n", "str(input.item)"))
    return graph(control("many", "foreach", items=items, max_parallel=64, body=body))


async def measure(
    nc: Nats, mesh: Mesh, master_key: bytes, count: int = ITERATIONS
) -> list[dict[str, Any]]:
    """Run both; return a row each."""
    store = JetStreamEventStore(nc, JetStreamKeyRing(nc.jetstream(), master_key))
    rows = []
    for name, definition in (("while", loop(count)), ("foreach", foreach(count))):
        await deploy(nc.jetstream(), f"many_{name}", definition)
        before = _resident(mesh)
        key = RunKey(DEFAULT_TENANT, new_id())
        headers = {Header.RUN_ID: key.run_id, Header.CONTENT_TYPE: "application/msgpack"}
        subject = submit(key.tenant, f"many_{name}")
        await nc.jetstream().publish(subject, pack_inputs({}), headers=headers)
        await ended(nc, key)
        history = await store.load(key)
        rows.append(_row(name, history, _resident(mesh) - before, count))
    return rows


async def ended(nc: Nats, key: RunKey) -> None:
    """Wait for the end of a run by the header of its last commit."""

    async def over() -> bool:
        await asyncio.sleep(LOOK_S)
        try:
            last = await nc.jetstream().get_last_msg(EVENTS, event(key), direct=True)
        except NotFoundError:
            return False
        return (last.headers or {}).get(Header.STATUS) != "running"

    await until(over, what="the end of the run", timeout_s=PATIENCE_S)


def _row(name: str, history: History, grown_mib: float, count: int) -> dict[str, Any]:
    times = [item.at for item in history.events() if isinstance(item, ScopeClosed)]
    edges = [times[min(len(times) - 1, part * count // PARTS)] for part in range(PARTS + 1)]
    pairs = itertools.pairwise(edges)
    per_ms = [round((end - start) * 1000 * PARTS / count, 3) for start, end in pairs]
    state = history.state()
    assert state is not None
    return {
        "scenario": f"iterations_{name}",
        "iterations": len(times),
        "status": state.status,
        "ms_each_by_tenth": per_ms,
        "orchestrator_grew_mib": round(grown_mib, 1),
        "goal": f"last <= {FLAT} x second",
        "met": state.status == "completed"
        and per_ms[-1] <= FLAT * per_ms[1]
        and grown_mib <= GROWTH_MIB,
    }


def _resident(mesh: Mesh) -> float:
    process = mesh.services["orchestrator-0"].process
    assert process is not None
    return resident_mib(process.pid)
