"""Writing workflows in Python."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import ValidationError
from typing_extensions import override

from clawdbot.client import Client
from clawdbot.graphs import Graph, GraphBuilder, given
from schemas.api import WorkflowView
from schemas.errors import InvalidArgument
from schemas.workflow import (
    Alternative,
    Concurrency,
    Deployment,
    Mode,
    Priority,
    RetryPolicy,
    invalid,
)


class WorkflowBuilder(GraphBuilder):
    """Builds a workflow step by step; every method returns the builder itself.

    wf = (
        WorkflowBuilder()
        .add_node("asr", model="whisper-tiny")
        .add_node("reply", template="You said {{asr.text}}.")
        .connect("asr", "reply")
    )

    Args:
        timeout_s: Time for a whole run, seconds.
        on_failure: What a node that failed for good does to the run: `fail` ends it, `pause` waits
            until somebody retries or skips the node.
        mode: What is stored before its effects: `strong` every decision; `ordered` none, but what
            led to one is kept until it is; `eventual` the log follows behind.
        priority: Which tasks go first where workers are short.
    """

    def __init__(
        self,
        *,
        timeout_s: float | None = None,
        on_failure: Literal["fail", "pause"] | None = None,
        mode: Mode | None = None,
        priority: Priority | None = None,
    ) -> None:
        super().__init__()
        self._limits = given(
            timeout_s=timeout_s, on_failure=on_failure, mode=mode, priority=priority
        )

    def add_node(  # noqa: PLR0913 - one keyword for each thing a node may have
        self,
        node_id: str,
        *,
        model: str | None = None,
        template: str | None = None,
        template_id: str | None = None,
        inputs: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
        retry: RetryPolicy | None = None,
        join: Literal["all", "any"] | int | None = None,
        compensate: Graph | None = None,
        pool: str | None = None,
        alternatives: Sequence[Alternative] | None = None,
        prefer: Literal["order", "fastest"] | None = None,
        hedge_after_s: float | None = None,
        priority: Priority | None = None,
        memo: bool | float | None = None,
        concurrency: Concurrency | None = None,
        **params: Any,
    ) -> Self:
        """Add a node: a model, a template of your own, or a named template.

        Args:
            node_id: Unique in the workflow; letters, digits, `_`, `-`.
            model: Name of a model in the catalogue.
            template: Text with `{{...}}`.
            template_id: Name of a template in the catalogue.
            inputs: Explicit sources, `{"text": "asr.text"}`, `{"audio": "input.question"}` or
                `{"text": "= lower(asr.text)"}`; what is not named is matched along the edges.
            timeout_s: Time for one attempt, seconds.
            retry: How often and how patiently a failure is tried again.
            join: How many taken edges it waits for.
            compensate: Undoes it when the run fails or is cancelled later.
            pool: Whose workers take it.
            alternatives: Other models or pools that may do it, best first.
            prefer: Among the ways that are well: the first, or the fastest.
            hedge_after_s: Ask another way too after this long, seconds.
            priority: Of its tasks; the workflow's by default.
            memo: Take a result of before: a day old at most, or so many seconds.
            concurrency: It waits until fewer than `limit` nodes of its key are under way.
            params: For the model, for instance `grammar=...`.

        Raises:
            InvalidArgument: Names what cannot work.
        """
        what = _one(node_id, model=model, template=template, template_id=template_id)
        rest = given(
            inputs=inputs,
            timeout_s=timeout_s,
            retry=retry,
            join=join,
            compensate=compensate,
            pool=pool,
            alternatives=None if alternatives is None else tuple(alternatives),
            prefer=prefer,
            hedge_after_s=hedge_after_s,
        ) | given(priority=priority, memo=memo, concurrency=concurrency)
        return self._add(node_id, "model" if model is not None else "template", what | params, rest)

    def deploy(self, name: str, *, replicas: int = 1, client: Client | None = None) -> WorkflowView:
        """Deploy the workflow.

        Args:
            name: What it is called from now on.
            replicas: Desired worker processes for each pool it uses.
            client: Where to; by default the address in `CLAWDBOT_URL`.

        Raises:
            InvalidArgument: The definition cannot work; names the node or edge.
            FailedPrecondition: A model cannot run there; says how to get it.
            Unavailable: The mesh cannot be reached.
        """
        try:
            deployment = Deployment(name=name, definition=self.definition(), replicas=replicas)
        except ValidationError as error:
            raise invalid(error) from error
        if client is not None:
            return client.deploy(deployment)
        with Client() as own:
            return own.deploy(deployment)

    @override
    def _whole(self) -> dict[str, Any]:
        return self._limits


def _one(node_id: str, **choices: str | None) -> dict[str, Any]:
    """Return the one of some arguments that was given.

    Raises:
        InvalidArgument: None was, or several were.
    """
    what = given(**choices)
    if len(what) != 1:
        raise InvalidArgument(f"node '{node_id}' needs exactly one of {', '.join(choices)}")
    return what
