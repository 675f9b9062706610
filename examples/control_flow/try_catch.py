"""Try, catch, finally: a failure is no end. `python -m examples.control_flow.try_catch`."""

from clawdbot import WorkflowBuilder
from examples.control_flow.play import play


def workflow() -> WorkflowBuilder:
    """Return a node that may fail, what happens then, and what happens anyway."""
    body = WorkflowBuilder().add_node("speak", model="echo", inputs={"text": "input.text"})
    catch = WorkflowBuilder().add_node("mend", template="caught {{input.error.code}}")
    tidy = WorkflowBuilder().add_node("tidy", template="tidied up")
    return WorkflowBuilder().try_("guard", body, catch=catch, finally_=tidy)


def main() -> None:
    """Once it works, once the text is longer than the model takes."""
    for text in ("hello", "x" * 20_000):
        run = play("example_try", workflow(), text=text)
        tidied = any(node.id == "guard[finally]/tidy" for node in run.nodes)
        print(f"try: {run.output('guard.text')}, finally ran: {tidied}")


if __name__ == "__main__":
    main()
