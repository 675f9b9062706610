"""Several ways to do a node. `python -m examples.control_flow.alternatives`."""

from clawdbot import Client, WorkflowBuilder
from examples.control_flow.play import play
from schemas.workflow import Alternative


def workflow() -> WorkflowBuilder:
    """Return a node whose first pool has no workers: another way is asked soon."""
    return WorkflowBuilder().add_node(
        "say",
        model="echo",
        pool="edge",
        alternatives=[Alternative(model="echo", pool="default")],
        hedge_after_s=0.2,
    )


def main() -> None:
    """Run it, and read from the events which way was chosen, and why."""
    run = play("example_alternatives", workflow(), text="hello")
    with Client() as client:
        chosen = [event for event in client.events(run.run_id) if event.type == "NodeScheduled"]
    for event in chosen:
        route = event.data["route"]
        print(f"alternatives: {route['figures'][route['index']]['route']}: {route['reason']}")


if __name__ == "__main__":
    main()
