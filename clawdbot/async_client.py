"""`Client` for asyncio."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from typing_extensions import override

from clawdbot import protocol
from clawdbot.client import address
from clawdbot.comparison import Comparison, blobs_to_compare, compare
from clawdbot.following import AsyncFollowing
from clawdbot.inputs import inline
from clawdbot.protocol import Call
from clawdbot.recordings import Source, blobs_of, bundle_bytes, open_recording, run_of
from clawdbot.regression import PAGE, Regression, Trial, check_bounds, summarise
from clawdbot.repository import AsyncRepository
from clawdbot.results import Run
from events.recording import Recording
from schemas.api import (
    EventView,
    ModelView,
    ProjectionView,
    RunPage,
    StatisticsView,
    WorkflowView,
)
from schemas.errors import ClawdbotError, NotFound
from schemas.values import Binary, BlobRef, Tensor
from schemas.workflow import Deployment


T = TypeVar("T")


class AsyncClient(AsyncFollowing):
    """`Client` for asyncio; see there."""

    def __init__(self, url: str | None = None) -> None:
        self.url = address(url)
        self._http = httpx.AsyncClient(base_url=self.url)
        self.repository = AsyncRepository(self._do)

    async def __aenter__(self) -> Self:
        """Return itself."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connections."""
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def deploy(self, deployment: Deployment) -> WorkflowView:
        """Deploy a workflow; the same again changes nothing."""
        return await self._do(protocol.deploy(deployment))

    async def workflows(self) -> tuple[WorkflowView, ...]:
        """Return every workflow's newest version."""
        return await self._do(protocol.workflows())

    async def workflow(self, name: str, version: int | None = None) -> WorkflowView:
        """Return one workflow."""
        return await self._do(protocol.workflow(name, version))

    async def run(
        self,
        workflow: str,
        inputs: Mapping[str, Any] | None = None,
        *,
        wait_s: float = protocol.WAIT_S,
        idempotency_key: str | None = None,
    ) -> Run:
        """Start a run and wait for its end, as `Client.run` does."""
        wire = await self._wire(inputs)
        return await self._do(protocol.submit(workflow, wire, wait_s, idempotency_key))

    async def get(self, run_id: str) -> Run:
        """Return a run as it is now."""
        return await self._do(protocol.run(run_id))

    async def runs(
        self,
        *,
        workflow: str | None = None,
        status: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> RunPage:
        """Return a page of runs, newest first."""
        return await self._do(protocol.runs(workflow, status, limit, cursor))

    async def cancel(self, run_id: str, reason: str = "") -> None:
        """Call a run off; what it did is undone first where its nodes say how."""
        await self._do(protocol.control(run_id, "cancel", reason=reason))

    async def pause(self, run_id: str, reason: str = "") -> None:
        """Begin nothing new in a run until it is resumed."""
        await self._do(protocol.control(run_id, "pause", reason=reason))

    async def resume(self, run_id: str) -> None:
        """Let a paused run go on."""
        await self._do(protocol.control(run_id, "resume"))

    async def signal(
        self,
        run_id: str,
        name: str,
        payload: Any = None,
        *,
        id: str | None = None,  # noqa: A002 - its name on the wire
    ) -> None:
        """Send a run a signal; it is kept until a node asks for it."""
        await self._do(protocol.signal(run_id, name, payload, id))

    async def skip(
        self,
        run_id: str,
        node: str,
        *,
        outputs: Mapping[str, Any] | None = None,
        reason: str = "",
    ) -> None:
        """Do without a node of a run, or put outputs in place of its work."""
        await self._do(protocol.skip(run_id, node, outputs, reason))

    async def retry(self, run_id: str, node: str) -> None:
        """Try a node again that failed, or that waits for its next attempt."""
        await self._do(protocol.control(run_id, "retry", node=node))

    async def events(self, run_id: str) -> tuple[EventView, ...]:
        """Return a run's events so far."""
        return await self._do(protocol.events(run_id))

    async def replay(self, run_id: str, until: int | None = None) -> Run:
        """Return a run folded from its log, up to an event; no model is called."""
        return await self._do(protocol.replay(run_id, until))

    async def export(self, run_id: str, *, blobs: bool = True) -> bytes:
        """Return a run as one file, in clear: its events, its workflow, its blobs."""
        return await self._do(protocol.export(run_id, blobs=blobs))

    async def import_bundle(self, bundle: bytes | Path) -> Run:
        """Take a run that is over out of a file into this mesh; the same again changes nothing."""
        return await self._do(protocol.import_bundle(bundle_bytes(bundle)))

    async def fork(
        self,
        run_id: str,
        *,
        at: int | None = None,
        changes: Mapping[str, Any] | None = None,
        version: int | None = None,
        wait_s: float = protocol.WAIT_S,
        idempotency_key: str | None = None,
    ) -> Run:
        """Start a run that begins like another one and goes on differently.

        Args:
            run_id: The run it comes from.
            at: The event, from 1, after which it begins; by default the last one.
            changes: By path: `node.model`, `node.param`, `inputs.name`.
            version: Of the workflow to go on with; by default the run's own.
            wait_s: How long to wait; 0 returns at once.
            idempotency_key: The same key with the same fork is the same run, for ever.
        """
        call = protocol.fork(
            run_id,
            at,
            changes or {},
            version,
            wait_s=wait_s,
            idempotency_key=idempotency_key,
        )
        return await self._do(call)

    async def compare(self, a: Source, b: Source, *, tolerance: float = 0.0) -> Comparison:
        """Compare two runs, each by its id or out of a bundle."""
        sides = [await self._side(a), await self._side(b)]
        wanted = blobs_to_compare(sides[0][0], sides[1][0])
        blobs: dict[str, bytes] = {}
        for _, recording in sides:
            blobs |= {} if recording is None else blobs_of(recording, wanted)
        blobs |= await self._blobs(wanted - blobs.keys())
        return compare(sides[0][0], sides[1][0], blobs=blobs, tolerance=tolerance)

    async def regress(  # noqa: PLR0913 - what is changed, and how many runs at what pace
        self,
        workflow: str,
        changes: Mapping[str, Any] | None = None,
        *,
        version: int | None = None,
        last: int = 100,
        parallel: int = 4,
        wait_s: float = protocol.WAIT_S,
        tolerance: float = 0.0,
    ) -> Regression:
        """Fork a workflow's last completed runs with a change, and compare outputs and latency."""
        check_bounds(last, parallel)
        places = asyncio.Semaphore(parallel)

        async def attempt(run: Run) -> Trial:
            async with places:
                try:
                    fork = await self.fork(
                        run.run_id, changes=changes, version=version, wait_s=wait_s
                    )
                    if not fork.over:
                        return Trial(run, fork.run_id, error=f"the fork is {fork.status} still")
                    blobs = await self._blobs(blobs_to_compare(run, fork))
                    found = compare(run, fork, blobs=blobs, tolerance=tolerance)
                    return Trial(run, fork.run_id, found)
                except ClawdbotError as error:
                    return Trial(run, error=error.message)

        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(attempt(run)) async for run in self._recorded(workflow, last)
            ]
        return summarise(workflow, dict(changes or {}), [task.result() for task in tasks])

    async def _side(self, source: Source) -> tuple[Run, Recording | None]:
        if isinstance(source, str):
            return await self.get(source), None
        recording = open_recording(source)
        return run_of(recording), recording

    async def _blobs(self, wanted: set[str]) -> dict[str, bytes]:
        blobs: dict[str, bytes] = {}
        for sha256 in sorted(wanted):
            with contextlib.suppress(NotFound):  # gone; compared by its digest
                blobs[sha256] = await self._do(protocol.get_blob(sha256))
        return blobs

    async def _recorded(self, workflow: str, last: int) -> AsyncGenerator[Run, None]:
        """Yield a workflow's last completed runs that are no forks, newest first."""
        cursor: str | None = None
        found = 0
        while True:
            page = await self.runs(workflow=workflow, status="completed", limit=PAGE, cursor=cursor)
            for summary in page.runs:
                try:
                    run = await self.get(summary.run_id)
                except NotFound:
                    continue  # retired meanwhile
                if run.forked_from is None:
                    yield run
                    found += 1
                if found >= last:
                    return
            if page.next is None:
                return
            cursor = page.next

    @override
    async def put_blob(self, data: bytes, media_type: str = "application/octet-stream") -> BlobRef:
        """Keep bytes."""
        return await self._do(protocol.put_blob(data, media_type))

    async def fetch(self, value: BlobRef | Binary | Tensor) -> bytes:
        """Return the bytes of a value, from wherever they are."""
        if isinstance(value, BlobRef):
            return await self._do(protocol.get_blob(value.sha256))
        return inline(value)

    async def statistics(self, workflow: str | None = None) -> StatisticsView:
        """Return what each node did over all runs in the log."""
        return await self._do(protocol.statistics(workflow))

    async def verify_projections(self) -> tuple[ProjectionView, ...]:
        """Have the gateway build its projections anew from the log and compare them."""
        return await self._do(protocol.verify_projections())

    async def models(self) -> tuple[ModelView, ...]:
        """Return the catalogue and who serves it."""
        return await self._do(protocol.models())

    async def _do(self, call: Call[T]) -> T:
        attempt = 0
        while True:
            last = attempt + 1 >= protocol.ATTEMPTS_MAX
            answer: httpx.Response | None = None
            try:
                answer = await self._http.send(protocol.request(self._http, call))
                if answer.status_code not in protocol.RETRYABLE or last:
                    break
            except httpx.TransportError as error:
                if last:
                    raise protocol.unreachable(self.url, error) from error
            await asyncio.sleep(protocol.delay_before(attempt, answer))
            attempt += 1
        protocol.check(answer)
        return call.read(answer)
