"""`call.<workflow>` on the bus: submit, wait, answer."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import orjson

from events.subjects import tenant_and_name
from schemas.api import RunView
from schemas.catalogue import Port
from schemas.errors import ClawdbotError, InvalidArgument
from schemas.ids import DEFAULT_TENANT, new_id, valid_token
from schemas.messages import Header
from schemas.plan import Plan
from schemas.submission import parse_submission
from schemas.values import Wire
from services.gateway.errors import STATUS, error_body, status_of
from services.gateway.inputs import checked
from services.gateway.submissions import Ask, Submissions
from services.telemetry import get_logger


log = get_logger()

TOO_LARGE = "413"


@dataclass(frozen=True)
class Reply:
    """What goes back to the caller; `code` is empty when all went well."""

    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    code: str = ""
    description: str = ""

    def fitting(self, bytes_max: int) -> "Reply":
        """Return this reply, or one that says where to read what does not fit into a message."""
        if len(self.body) <= bytes_max:
            return self
        text = f"the answer has {len(self.body)} bytes, a message holds {bytes_max}; read the run"
        return replace(self, body=b"", code=TOO_LARGE, description=text)


class Calls:
    """Answers calls.

    Args:
        submissions: Submits and waits.
        wait_s: How long to wait when the caller does not say.
        wait_s_max: How long a caller may ask to wait.
    """

    def __init__(self, submissions: Submissions, wait_s: float, wait_s_max: float) -> None:
        self._submissions = submissions
        self._wait_s = wait_s
        self._wait_s_max = wait_s_max

    async def answer(self, subject: str, headers: Mapping[str, str], body: bytes) -> Reply:
        """Answer one call: the outputs as JSON, or an error with the HTTP status as its code."""
        request_id = new_id()
        reply = await self._answer(subject, headers, body, request_id)
        log.info(
            "call_handled",
            subject=subject,
            request_id=request_id,
            correlation_id=headers.get(Header.CORRELATION_ID),
            code=reply.code or "200",
            error=reply.description or None,
            run_id=reply.headers.get(Header.RUN_ID),
        )
        return reply

    async def _answer(
        self, subject: str, headers: Mapping[str, str], body: bytes, request_id: str
    ) -> Reply:
        async def read(plan: Plan, ports: Mapping[str, Port]) -> Wire:
            return checked(parse_submission(body, headers, plan), plan, ports)

        try:
            view = await self._submissions.run(self._ask(subject, headers), read)
        except ClawdbotError as error:
            return Reply(
                error_body(error, request_id), {}, str(status_of(error)), _one_line(error.message)
            )
        except Exception:
            log.exception("call_crashed", subject=subject, request_id=request_id)
            text = "something went wrong here; the log has it under this request_id"
            return Reply(orjson.dumps({"request_id": request_id}), {}, "500", text)
        return _reply(view)

    def _ask(self, subject: str, headers: Mapping[str, str]) -> Ask:
        tenant, workflow = tenant_and_name(subject)
        if tenant != DEFAULT_TENANT:
            raise InvalidArgument(f"there is no tenant '{tenant}'", field="subject")
        run_id = headers.get(Header.RUN_ID, "")
        if run_id:
            valid_token(run_id, field=Header.RUN_ID)
        return Ask(
            workflow=valid_token(workflow, field="workflow"),
            run_id=run_id,
            correlation_id=headers.get(Header.CORRELATION_ID, ""),
            traceparent=headers.get(Header.TRACEPARENT, ""),
            wait_s=self._patience(headers.get(Header.TIMEOUT_S)),
        )

    def _patience(self, text: str | None) -> float:
        if text is None:
            return self._wait_s
        try:
            seconds = float(text)
        except ValueError:
            seconds = 0.0
        if not 0 < seconds <= self._wait_s_max:
            raise InvalidArgument(
                f"send seconds, above 0 and at most {self._wait_s_max:g}", field=Header.TIMEOUT_S
            )
        return seconds


def _reply(view: RunView) -> Reply:
    headers = {Header.RUN_ID: view.run_id, Header.STATUS: view.status}
    if view.status == "completed":
        return Reply(orjson.dumps(view.outputs), headers)
    if view.error is not None:
        code = str(STATUS.get(view.error.code, 500))
        return Reply(
            orjson.dumps(view.error.model_dump()), headers, code, _one_line(view.error.message)
        )
    if view.status == "cancelled":
        return Reply(b"", headers, str(STATUS["CANCELLED"]), "the run was called off")
    text = f"run {view.run_id} is still {view.status}; it goes on"
    return Reply(b"", headers, str(STATUS["DEADLINE_EXCEEDED"]), text)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:256]
