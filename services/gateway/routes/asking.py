"""What every request that starts a run may say, and how it is answered."""

from typing import Annotated

from fastapi import Depends, Header, Query, Request, Response

from schemas.api import RunView
from schemas.errors import InvalidArgument
from schemas.ids import valid_token
from services.gateway.inputs import read_inputs
from services.gateway.routes import Parts, Wanted, answer
from services.gateway.submissions import Ask


KEY_CHARS_MAX = 255
IdempotencyKey = Annotated[str | None, Header(max_length=KEY_CHARS_MAX)]


async def _asked(
    request: Request,
    parts: Wanted,
    wait: Annotated[float, Query(ge=0, description="Wait for the end, seconds")] = 0.0,
    idempotency_key: IdempotencyKey = None,
    clawdbot_run_id: Annotated[str | None, Header(description="An id of your own")] = None,
) -> Ask:
    if wait > parts.settings.wait_s_max:
        raise InvalidArgument(f"wait at most {parts.settings.wait_s_max:g} seconds", field="wait")
    if idempotency_key is not None and not idempotency_key.strip():
        raise InvalidArgument("send a key that is not empty", field="Idempotency-Key")
    if clawdbot_run_id is not None:
        valid_token(clawdbot_run_id, field="Clawdbot-Run-Id")
    return Ask(
        workflow="",
        run_id=clawdbot_run_id or "",
        idempotency_key=idempotency_key or "",
        correlation_id=request.state.correlation_id,
        traceparent=request.headers.get("traceparent", ""),
        wait_s=wait,
    )


Asked = Annotated[Ask, Depends(_asked)]
"""How a run is wanted; of which workflow, the route says."""


async def begun(request: Request, parts: Parts, ask: Ask) -> RunView:
    """Start a run with the inputs that a request brings, and wait for it as long as is asked."""
    return await parts.submissions.run(ask, lambda plan, ports: read_inputs(request, plan, ports))


def started(request: Request, view: RunView, ask: Ask) -> Response:
    """Answer with a run that was begun: 200 when its end was waited for and came, else 202."""
    request.state.facts["run_id"] = view.run_id
    over = view.status not in {"accepted", "running", "paused"}
    return answer(
        view, 200 if over and ask.wait_s else 202, {"Location": f"/v1/runs/{view.run_id}"}
    )
