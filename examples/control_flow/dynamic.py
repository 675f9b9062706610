"""A graph made by a node. `python -m examples.control_flow.dynamic`."""

from itertools import pairwise
from typing import Any

from clawdbot import WorkflowBuilder
from examples.control_flow.play import play


def workflow() -> WorkflowBuilder:
    """Return a workflow that runs whatever plan it is given, checked like any other."""
    return WorkflowBuilder().dynamic("plan", "input.plan", max_nodes=8)


def plan(*steps: str) -> dict[str, Any]:
    """Return a chain of templates, as a planning model would."""
    nodes = [
        {"id": f"s{number}", "type": "template", "params": {"template": "{{text}}" + step}}
        for number, step in enumerate(steps)
    ]
    ids = [node["id"] for node in nodes]
    edges = [{"source": one, "target": two} for one, two in pairwise(ids)]
    return {"nodes": nodes, "edges": edges}


def main() -> None:
    """Run two plans with one workflow; the second one cannot work, and says why."""
    run = play("example_dynamic", workflow(), plan=plan(" one", " two", " three"), text="steps:")
    print(f"dynamic: {run.output('plan.text')}")
    run = play("example_dynamic", workflow(), plan={"nodes": [{"id": "x", "type": "magic"}]})
    print(f"dynamic: {run.status}: {run.error.message if run.error else ''}")


if __name__ == "__main__":
    main()
