"""Emit and triggers: one workflow starts another. `python -m examples.control_flow.events`."""

import time

from clawdbot import Client, WorkflowBuilder
from examples.control_flow.play import play
from schemas.workflow import Deployment, Schedule, Trigger


def listener() -> Deployment:
    """Return a workflow that starts for each order, and every hour by itself."""
    return Deployment(
        name="example_listener",
        definition=WorkflowBuilder()
        .add_node("say", template="heard of {{input.item}}")
        .definition(),
        triggers={
            "order": Trigger(subject="example.orders.*", inputs={"item": "event.payload.item"})
        },
        schedules={"hourly": Schedule(cron="0 * * * *", inputs={"item": "nothing new"})},
    )


def workflow() -> WorkflowBuilder:
    """Return one that tells of an order."""
    return WorkflowBuilder().emit("tell", "example.orders.new", payload='= {"item": input.item}')


def main() -> None:
    """Tell, and see who heard."""
    with Client() as client:
        client.deploy(listener())
        before = {run.run_id for run in client.runs(workflow="example_listener").runs}
        play("example_emit", workflow(), item="a book")
        fresh: set[str] = set()
        while not fresh:
            time.sleep(0.05)
            runs = client.runs(workflow="example_listener").runs
            fresh = {run.run_id for run in runs if run.status == "completed"} - before
        print(f"events: {client.get(fresh.pop()).output('say.text')}")


if __name__ == "__main__":
    main()
