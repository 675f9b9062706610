"""What starts runs besides submissions: schedules that fire, and messages that trigger.

Both become submissions with an id derived from the message, so one that is delivered twice starts
one run.
"""

from collections.abc import Sequence

import orjson

from events.definitions import DefinitionStore, DeployedWorkflow
from events.schedules import Schedules
from events.subjects import cron_of, matches, submit, topic_of
from schemas.errors import InvalidArgument, TerminalError
from schemas.expressions import parse
from schemas.ids import DEFAULT_TENANT
from schemas.messages import Header
from schemas.workflow import Trigger
from services.runtime import Delivery, Outgoing
from services.telemetry import child_traceparent, get_logger


log = get_logger()


class Starters:
    """Turns firings and messages into submissions."""

    def __init__(self, definitions: DefinitionStore, schedules: Schedules) -> None:
        self._definitions = definitions
        self._schedules = schedules
        self._known: dict[str, tuple[int, list[DeployedWorkflow]]] = {}

    async def put_schedules(self) -> None:
        """Give the server the schedules of every deployed workflow, as after it lost them."""
        for workflow in await self._definitions.all_newest(DEFAULT_TENANT):
            if workflow.schedules:
                await self._schedules.put(DEFAULT_TENANT, workflow)

    async def due(self, delivery: Delivery) -> Sequence[Outgoing]:
        """Start the run that a schedule asks for."""
        tenant, workflow, name = cron_of(delivery.subject)
        run_id = f"cron-{name}-{delivery.sequence}"[-64:]
        delivery.facts.update(run_id=run_id, workflow=workflow)
        return [_submission(tenant, workflow, run_id, delivery, delivery.data)]

    async def topic(self, delivery: Delivery) -> Sequence[Outgoing]:
        """Start a run of every workflow that listens to a subject."""
        tenant, subject = topic_of(delivery.subject)
        started: list[Outgoing] = []
        for workflow in await self._workflows(tenant):
            for name, trigger in workflow.triggers.items():
                if not matches(trigger.subject, subject):
                    continue
                run_id = f"on-{workflow.name}-{name}-{delivery.sequence}"[-64:]
                body = self._body(workflow.name, trigger, subject, delivery)
                if body is not None:
                    started.append(_submission(tenant, workflow.name, run_id, delivery, body))
        delivery.facts["runs"] = len(started)
        return started

    def _body(
        self, workflow: str, trigger: Trigger, subject: str, delivery: Delivery
    ) -> bytes | None:
        try:
            payload = orjson.loads(delivery.data or b"null")
            event = {"subject": subject, "id": str(delivery.sequence), "payload": payload}
            inputs = {
                name: parse(formula).evaluate({"event": event})
                for name, formula in trigger.inputs.items()
            }
            if not trigger.inputs:
                if not isinstance(payload, dict):
                    raise InvalidArgument("the payload is no object of inputs")
                inputs = payload
            return orjson.dumps({"inputs": inputs})
        except (orjson.JSONDecodeError, TerminalError) as error:
            log.warning("trigger_refused", workflow=workflow, subject=subject, error=str(error))
            return None

    async def _workflows(self, tenant: str) -> list[DeployedWorkflow]:
        revision = await self._definitions.revision()
        known = self._known.get(tenant)
        if known is None or known[0] != revision:
            known = (revision, await self._definitions.all_newest(tenant))
            self._known[tenant] = known
        return known[1]


def _submission(
    tenant: str, workflow: str, run_id: str, delivery: Delivery, body: bytes
) -> Outgoing:
    headers = {
        Header.RUN_ID: run_id,
        Header.CONTENT_TYPE: "application/json",
        Header.CORRELATION_ID: delivery.headers.get(Header.CORRELATION_ID) or run_id,
        Header.TRACEPARENT: child_traceparent(delivery.headers.get(Header.TRACEPARENT)),
    }
    return Outgoing(submit(tenant, workflow), body, headers)
