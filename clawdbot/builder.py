"""Writing workflows in Python."""

from typing import Any, Self

from pydantic import ValidationError

from clawdbot.client import Client
from schemas.api import WorkflowView
from schemas.errors import InvalidArgument
from schemas.workflow import Deployment, Edge, Node, RetryPolicy, WorkflowDefinition, invalid


class WorkflowBuilder:
    """Builds a workflow step by step; every method returns the builder itself.

    wf = (
        WorkflowBuilder()
        .add_node("asr", model="whisper-tiny")
        .add_node("reply", template="You said {{asr.text}}.")
        .connect("asr", "reply")
    )
    """

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}
        self._edges: list[Edge] = []

    def add_node(  # noqa: PLR0913 - one keyword for each thing a node may have
        self,
        node_id: str,
        *,
        model: str | None = None,
        template: str | None = None,
        template_id: str | None = None,
        inputs: dict[str, str] | None = None,
        timeout_s: float | None = None,
        retry: RetryPolicy | None = None,
        **params: Any,
    ) -> Self:
        """Add a node: a model, a template of your own, or a named template.

        Args:
            node_id: Unique in the workflow; letters, digits, `_`, `-`.
            model: Name of a model in the catalogue.
            template: Text with `{{...}}`.
            template_id: Name of a template in the catalogue.
            inputs: Explicit sources, `{"text": "asr.text"}` or `{"audio": "input.question"}`; what
                is not named is matched along the edges.
            timeout_s: Time for one attempt, seconds.
            retry: How often and how patiently a failure is tried again.
            params: For the model, for instance `grammar=...`.

        Raises:
            InvalidArgument: Names what cannot work.
        """
        what = {"model": model, "template": template, "template_id": template_id}
        given = {name: value for name, value in what.items() if value is not None}
        if len(given) != 1:
            raise InvalidArgument(
                f"node '{node_id}' needs exactly one of model, template, template_id"
            )
        if node_id in self._nodes:
            raise InvalidArgument(f"node id '{node_id}' is used twice", field="node_id")
        rest = {"timeout_s": timeout_s, "retry": retry}
        try:
            self._nodes[node_id] = Node(
                id=node_id,
                type="model" if model is not None else "template",
                params=given | params,
                inputs=inputs or {},
                **{name: value for name, value in rest.items() if value is not None},  # type: ignore[arg-type]
            )
        except ValidationError as error:
            raise invalid(error) from error
        return self

    def connect(self, source: str, target: str) -> Self:
        """Let data flow from one node to another.

        Raises:
            InvalidArgument: One of the two does not exist.
        """
        for end in (source, target):
            if end not in self._nodes:
                known = ", ".join(self._nodes) or "none yet"
                raise InvalidArgument(f"no node '{end}'; add it first (there are: {known})")
        self._edges.append(Edge(source=source, target=target))
        return self

    def definition(self) -> WorkflowDefinition:
        """Return the definition.

        Raises:
            InvalidArgument: No nodes, a repeated edge, or a cycle.
        """
        try:
            built = WorkflowDefinition(nodes=tuple(self._nodes.values()), edges=tuple(self._edges))
        except ValidationError as error:
            raise invalid(error) from error
        built.check_graph()
        return built

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
