"""Forking a run: what a client asks for, and the changed workflow and inputs that come of it.

A change is a path and a value:

    inputs.NAME          an input of the run
    NODE.PARAM           a parameter of a node; a dotted PARAM reaches into it
    NODE.FIELD           timeout_s, retry, join, pool, inputs, ... of a node
    OUTER/NODE.PARAM     of a node inside a control node's body; OUTER[catch]/NODE of its catch
"""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

from pydantic import Field, ValidationError

from schemas.errors import InvalidArgument
from schemas.message import UserInput
from schemas.submission import inputs_digest
from schemas.values import Wire, from_json
from schemas.workflow import Node, WorkflowDefinition, invalid, parse_definition


CHANGES_MAX = 64
"""Changes that one fork may make."""
INPUTS = "inputs."
_EXCLUSIVE = {"template": "template_id", "template_id": "template"}
_FIELDS = frozenset(Node.model_fields) - {"id", "type", "params", "compensate"}


class Fork(UserInput):
    """A run that begins like another one and goes on differently."""

    at: int | None = Field(default=None, ge=1)
    """The event, from 1, after which it begins; by default the last one there is."""
    changes: dict[str, Any] = Field(default_factory=dict, max_length=CHANGES_MAX)
    """By path: `node.model`, `node.param`, `inputs.name`."""
    version: int | None = Field(default=None, ge=1)
    """The version of the workflow to go on with; by default the one the run began with."""

    def digest(self, run_id: str, workflow: str) -> str:
        """Return what two forks share exactly if they are the same fork of the same run."""
        wanted = {"run_id": run_id, **self.model_dump(mode="json")}
        return inputs_digest(workflow, {"fork": wanted})


def parse_fork(body: bytes) -> Fork:
    """Read the body of a submission that forks a run, JSON.

    Raises:
        InvalidArgument: It is none; names the field.
    """
    try:
        return Fork.model_validate_json(body)
    except ValidationError as error:
        raise invalid(error) from error


def changed_inputs(inputs: Wire, changes: Mapping[str, Any]) -> Wire:
    """Return a run's inputs with the changes that concern them.

    Raises:
        InvalidArgument: A value is malformed; names it.
    """
    named = {
        path.removeprefix(INPUTS): value
        for path, value in changes.items()
        if path.startswith(INPUTS)
    }
    return {**inputs, **from_json(named)}


def changed_definition(
    definition: WorkflowDefinition, changes: Mapping[str, Any]
) -> WorkflowDefinition:
    """Return a workflow with the changes that concern its nodes.

    Raises:
        InvalidArgument: A path names no node, or the workflow is none any more; names the change.
    """
    wanted = {path: value for path, value in changes.items() if not path.startswith(INPUTS)}
    if not wanted:
        return definition
    document = deepcopy(definition.model_dump(mode="json", exclude_defaults=True))
    for path, value in wanted.items():
        _change(document, path, value)
    return parse_definition(document)


def blame(changes: Iterable[str]) -> str:
    """Return the field of an error that changes of a workflow led to."""
    named = [path for path in changes if not path.startswith(INPUTS)]
    return f"changes.{named[0]}" if len(named) == 1 else "changes"


def _change(document: dict[str, Any], path: str, value: Any) -> None:
    where, dot, key = path.partition(".")
    if not dot or not key or not where:
        raise InvalidArgument(
            f"'{path}' is no path; write NODE.PARAM, such as nlu.model, or inputs.NAME",
            field=f"changes.{path}",
        )
    node = _node(document, where, path)
    first, _, rest = key.partition(".")
    if first in _FIELDS and first not in node.get("params", {}):
        target = node
    else:
        target = node.setdefault("params", {})
        target.pop(_EXCLUSIVE.get(first, ""), None)
    if rest:
        _put(target, key.split("."), value, path)
    else:
        target[key] = value


def _put(target: Any, keys: list[str], value: Any, path: str) -> None:
    """Set a value inside objects; the last key may be new, those before it may not."""
    for key in keys[:-1]:
        if not isinstance(target, dict) or key not in target:
            raise InvalidArgument(
                f"'{path}': there is no '{key}' to change", field=f"changes.{path}"
            )
        target = target[key]
    if not isinstance(target, dict):
        raise InvalidArgument(f"'{path}': '{keys[-2]}' is no object", field=f"changes.{path}")
    target[keys[-1]] = value


def _node(document: dict[str, Any], where: str, path: str) -> dict[str, Any]:
    """Return the node that a path names, inside of control nodes too."""
    graph, found = document, {}
    steps = where.split("/")
    for place, step in enumerate(steps):
        name, _, label = step.rstrip("]").partition("[")
        by_id = {node["id"]: node for node in graph.get("nodes", ())}
        if name not in by_id:
            known = ", ".join(sorted(by_id)) or "none"
            raise InvalidArgument(f"no node '{name}'; there are: {known}", field=f"changes.{path}")
        found = by_id[name]
        if place < len(steps) - 1:
            graph = _body(found, label, path)
    return found


def _body(node: dict[str, Any], label: str, path: str) -> dict[str, Any]:
    name = "body" if not label or label.isdecimal() else label
    body = node.get("compensate") if name == "compensate" else node.get("params", {}).get(name)
    if not isinstance(body, dict):
        raise InvalidArgument(
            f"node '{node['id']}' has no graph '{name}' of its own to change",
            field=f"changes.{path}",
        )
    return body
