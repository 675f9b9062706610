"""Results of before, for tasks that may take them."""

from events.blobs import BlobStore
from events.memo import Memo, MemoStore, memo_digest
from schemas.errors import ClawdbotError
from schemas.messages import Task
from schemas.values import BlobRef, Wire, from_wire
from services.runtime import Clock
from services.telemetry import MEMOS, get_logger
from services.workers.models import Models


log = get_logger()


class Remembered:
    """Finds and keeps results; whatever goes wrong here, the task is computed.

    Args:
        memos: The results.
        blobs: Where large outputs are, which retention may have taken.
        models: Know which model serves here, and which version.
        clock: Tells how old a result is.
    """

    def __init__(self, memos: MemoStore, blobs: BlobStore, models: Models, clock: Clock) -> None:
        self._memos = memos
        self._blobs = blobs
        self._models = models
        self._clock = clock

    async def find(self, task: Task) -> Memo | None:
        """Return a result of the same model, inputs and parameters that is young enough."""
        if not task.memo_s:
            return None
        try:
            found = await self._memos.get(task.tenant, self._digest(task))
            if found is not None and self._clock.now() - found.at > task.memo_s:
                found = None
            if found is not None and not await self._is_whole(task.tenant, found.outputs):
                found = None
        except ClawdbotError as error:
            log.info("memo_skipped", run_id=task.run_id, error=error.message)
            MEMOS.labels("error").inc()
            return None
        MEMOS.labels("miss" if found is None else "hit").inc()
        return found

    async def keep(self, task: Task, outputs: Wire, model: str) -> None:
        """Keep a result."""
        if not task.memo_s:
            return
        result = Memo(
            outputs=outputs,
            model=model,
            run_id=task.run_id,
            node_id=task.node_id,
            at=self._clock.now(),
        )
        try:
            await self._memos.put(task.tenant, self._digest(task), result)
        except ClawdbotError as error:
            log.info("memo_not_kept", run_id=task.run_id, error=error.message)

    def _digest(self, task: Task) -> str:
        model = self._models.fingerprint(task.model)
        params = dict(task.params)
        if task.adapt:  # the same file is another input where it is made into something else
            params["$adapt"] = {name: item.model_dump() for name, item in task.adapt.items()}
        return memo_digest(model, params, task.inputs)

    async def _is_whole(self, tenant: str, outputs: Wire) -> bool:
        """Tell whether every blob is there still, and make sure that it stays for this run."""
        for name, item in outputs.items():
            value = from_wire(item, field=name)
            if isinstance(value, BlobRef) and not await self._blobs.renew(tenant, value.sha256):
                return False
        return True
