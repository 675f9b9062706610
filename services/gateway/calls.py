"""`call.<workflow>` on the bus: submit, wait, answer."""

from collections.abc import Mapping

import orjson

from events.subjects import tenant_and_name
from schemas.catalogue import Port
from schemas.errors import ClawdbotError, DeadlineExceeded, EngineFailed, InvalidArgument, by_code
from schemas.ids import DEFAULT_TENANT, valid_token
from schemas.messages import Header
from schemas.plan import Plan
from schemas.submission import parse_submission
from schemas.values import Wire
from services.gateway.inputs import checked
from services.gateway.submissions import Ask, Ended, Submissions
from services.micro import Asked, Reply


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

    async def answer(self, asked: Asked) -> Reply:
        """Answer one call with the outputs as JSON.

        Raises:
            ClawdbotError: The call cannot work, nothing was submitted.
        """
        ask = self._ask(asked.subject, asked.headers)

        async def read(plan: Plan, ports: Mapping[str, Port]) -> Wire:
            return checked(parse_submission(asked.body, asked.headers, plan), plan, ports)

        ended = await self._submissions.call(ask, read)
        asked.facts["correlation_id"] = ended.correlation_id or ask.correlation_id or ended.run_id
        return _reply(ended)

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


def _reply(ended: Ended) -> Reply:
    headers = {Header.RUN_ID: ended.run_id, Header.STATUS: ended.status}
    if ended.status == "completed":
        return Reply(orjson.dumps(ended.outputs), headers)
    return Reply(b"", headers, error_of(ended))


def error_of(ended: Ended) -> ClawdbotError:
    """Return why a run that was waited for gave nothing."""
    if ended.error is None:
        text = f"run {ended.run_id} is still {ended.status}; it goes on"
        return DeadlineExceeded(text, run_id=ended.run_id)
    kind = by_code().get(ended.error.code, EngineFailed)
    return kind(ended.error.message, field=ended.error.field, run_id=ended.run_id)
