"""A workflow inside a workflow. `python -m examples.control_flow.sub_workflow`."""

from clawdbot import Client, WorkflowBuilder
from examples.control_flow.play import play


def greeting() -> WorkflowBuilder:
    """Return the workflow that others use."""
    return WorkflowBuilder().add_node("say", template="Hello, {{input.name}}!")


def workflow() -> WorkflowBuilder:
    """Return one that runs it for each name, as it is now, whatever is deployed later."""
    body = WorkflowBuilder().workflow("greet", "example_greeting", inputs={"name": "input.name"})
    return WorkflowBuilder().foreach("each", "input.names", body, as_="name", collect="greet.text")


def main() -> None:
    """Deploy both, run the outer one."""
    with Client() as client:
        greeting().deploy("example_greeting", client=client)
    run = play("example_sub_workflow", workflow(), names=["Ada", "Grace"])
    print(f"sub_workflow: {run.output('each.items')}")


if __name__ == "__main__":
    main()
