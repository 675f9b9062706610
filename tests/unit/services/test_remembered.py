"""Results of before: what makes two tasks the same, and when a result is no good."""

from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

from events.blobs import MemoryBlobStore
from events.memo import Memo, MemoryMemoStore
from schemas import catalogue
from schemas.errors import StoreUnavailable
from schemas.messages import Task
from schemas.values import to_wire
from services.workers.models import Capacity, Models
from services.workers.remembered import Remembered
from tests.support.clock import ManualClock


def task(run_id: str = "a", **rest: Any) -> Task:
    """Return a task that may take a result of before."""
    fields: dict[str, Any] = {
        "tenant": "default",
        "model": "echo",
        "inputs": {"text": "hi"},
        "params": {},
        "memo_s": 60.0,
    }
    return Task(
        run_id=run_id, node_id="n", attempt=1, scheduled_at=0.0, deadline=0.0, **{**fields, **rest}
    )


def remembered(memos: MemoryMemoStore, blobs: MemoryBlobStore, clock: ManualClock) -> Remembered:
    """Return what is tested, over twins."""
    models = Models(catalogue.load(), "text", Path(), allow_fallback=True, capacity=Capacity(1))
    return Remembered(memos, blobs, models, clock)


@pytest.mark.parametrize(
    ("other", "found"),
    [
        ({}, True),
        ({"inputs": {"text": "ho"}}, False),
        ({"params": {"x": 1}}, False),
        ({"model": "template"}, False),
        ({"tenant": "another"}, False),
        ({"memo_s": 0.0}, False),
    ],
)
async def test_what_makes_two_tasks_the_same(other: dict[str, Any], found: bool) -> None:
    """Tenant, model, parameters and inputs."""
    memory = remembered(MemoryMemoStore(), MemoryBlobStore(), ManualClock())
    assert None is await memory.find(task())
    await memory.keep(task(), {"text": "hi"}, "echo")
    result = await memory.find(task("b", **other))
    assert found == (result is not None)
    if result is not None:
        assert ("a/n", {"text": "hi"}, "echo") == (result.source, result.outputs, result.model)


async def test_a_result_grows_old() -> None:
    """As old as the one who asks will have it."""
    clock = ManualClock()
    memory = remembered(MemoryMemoStore(), MemoryBlobStore(), clock)
    await memory.keep(task(), {}, "echo")
    clock.advance(61)
    assert None is await memory.find(task())
    assert None is not await memory.find(task(memo_s=62.0))


async def test_a_result_whose_blob_is_gone_is_none() -> None:
    """Retention may have taken it."""
    blobs = MemoryBlobStore()
    memory = remembered(MemoryMemoStore(), blobs, ManualClock())
    ref = await blobs.put("default", b"sound", "audio/wav")
    await memory.keep(task(), {"audio": to_wire(ref)}, "echo")
    assert None is not await memory.find(task())
    blobs._blobs.clear()
    assert None is await memory.find(task())


class Away(MemoryMemoStore):
    """A store that does not answer."""

    @override
    async def get(self, tenant: str, digest: str) -> Memo | None:
        raise StoreUnavailable("away")

    @override
    async def put(self, tenant: str, digest: str, result: Memo) -> None:
        raise StoreUnavailable("away")


async def test_a_store_that_is_away_is_done_without() -> None:
    """Then the task is computed."""
    memory = remembered(Away(), MemoryBlobStore(), ManualClock())
    assert None is await memory.find(task())
    await memory.keep(task(), {}, "echo")
