"""Schedules that start runs, kept by the server itself: one message each in TIMERS.

Source: ADR-51, scheduled messages.
"""

from dataclasses import dataclass

import orjson
from nats.js import JetStreamContext
from nats.js.errors import APIError

from events.definitions import DeployedWorkflow
from events.jetstream import BUS_ERRORS
from events.streams import TIMERS
from events.subjects import cron, cron_due
from schemas.errors import InvalidArgument, StoreUnavailable
from schemas.messages import Header
from schemas.workflow import Schedule


FIRED_TTL_S = 3600
"""How long a firing waits for an orchestrator."""
BAD_SCHEDULE = {10189, 10190, 10191}


@dataclass(frozen=True)
class Schedules:
    """Puts schedules where the server looks for them."""

    js: JetStreamContext

    async def put(self, tenant: str, workflow: DeployedWorkflow) -> None:
        """Keep exactly the schedules of a workflow; the same ones again change nothing.

        Raises:
            InvalidArgument: The server does not understand one; names it.
            StoreUnavailable: The server does not answer.
        """
        try:
            await self.js.purge_stream(TIMERS, subject=cron(tenant, workflow.name))
            for name, schedule in workflow.schedules.items():
                await self._put(tenant, workflow.name, name, schedule)
        except APIError as error:
            raise StoreUnavailable("the schedules cannot be kept", cause=str(error)) from error
        except BUS_ERRORS as error:
            raise StoreUnavailable("the schedules cannot be kept") from error

    async def _put(self, tenant: str, workflow: str, name: str, schedule: Schedule) -> None:
        headers = {
            "Nats-Schedule": schedule.expression(),
            "Nats-Schedule-Target": cron_due(tenant, workflow, name),
            "Nats-Schedule-TTL": f"{FIRED_TTL_S}s",
            Header.CONTENT_TYPE: "application/json",
        }
        body = orjson.dumps({"inputs": schedule.inputs})
        subject = cron(tenant, workflow, name)
        try:
            await self.js.publish(subject, body, headers=headers, stream=TIMERS)
        except APIError as error:
            if error.err_code not in BAD_SCHEDULE:
                raise
            raise InvalidArgument(
                f"the schedule '{name}' cannot be kept: {error.description}",
                field=f"schedules.{name}.cron",
            ) from error
