"""Which version of each model a plan names: chosen when a run begins, kept by its forks. Pure.

A plan is made of immutable parts that remember what was computed of them, so they are made anew
rather than copied.
"""

from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from typing import Any

from schemas.plan import Plan, PlanNode, Route
from schemas.repository import split


Rename = Callable[[str, int, str], str]
"""Gives a model's name from the path of its node, the index of its route, and the name before."""


def with_models(plan: Plan, rename: Rename, at: str = "") -> Plan:
    """Return a plan with other names of models; the same plan if none changed."""
    nodes = tuple(_renamed(node, rename, f"{at}{node.id}") for node in plan.nodes)
    if all(before is after for before, after in zip(plan.nodes, nodes, strict=True)):
        return plan
    return Plan(**{**_fields(plan), "nodes": nodes})


def as_before(plan: Plan, before: Plan, changed: AbstractSet[str]) -> Plan:
    """Return a fork's plan with the versions that the run had which it was forked from.

    Args:
        plan: Of the fork.
        before: Of the run.
        changed: Paths that the fork changes, `nlu.model`: these are chosen anew.
    """
    known = dict(_models(before))

    def rename(path: str, index: int, name: str) -> str:
        old = known.get((path, index), "")
        is_same = split(old)[0] == split(name)[0] and f"{path}.model" not in changed
        return old if is_same and not _is_version(name) else name

    return with_models(plan, rename)


def _renamed(node: PlanNode, rename: Rename, path: str) -> PlanNode:
    bodies = {
        label: with_models(body, rename, _inside(path, label))
        for label, body in node.bodies.items()
    }
    if node.kind != "model" and bodies == node.bodies:
        return node
    model = rename(path, 0, node.model) if node.kind == "model" else node.model
    names = [rename(path, index, route.model) for index, route in enumerate(node.alternatives, 1)]
    if (model, names, bodies) == (
        node.model,
        [route.model for route in node.alternatives],
        node.bodies,
    ):
        return node
    routes = tuple(
        Route(**{**_fields(route), "model": name})
        for route, name in zip(node.alternatives, names, strict=True)
    )
    update = {"model": model, "alternatives": routes, "bodies": bodies}
    return PlanNode(**{**_fields(node), **update})


def _models(plan: Plan, at: str = "") -> Iterator[tuple[tuple[str, int], str]]:
    for node in plan.nodes:
        path = f"{at}{node.id}"
        for index, route in enumerate(node.routes):
            yield (path, index), route.model
        for label, body in node.bodies.items():
            yield from _models(body, _inside(path, label))


def _inside(path: str, label: str) -> str:
    return f"{path}/" if label == "body" else f"{path}[{label}]/"


def _is_version(name: str) -> bool:
    reference = split(name)[1]
    return reference.isascii() and reference.isdecimal()


def _fields(model: Plan | PlanNode | Route) -> dict[str, Any]:
    return {name: getattr(model, name) for name in type(model).model_fields}
