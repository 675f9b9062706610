"""A loop: again until it is long enough. `python -m examples.control_flow.loop`."""

from clawdbot import WorkflowBuilder
from examples.control_flow.play import play


def workflow() -> WorkflowBuilder:
    """Return a loop that carries a variable from one iteration to the next."""
    body = WorkflowBuilder().add_node("grow", template="{{input.text}}!")
    return WorkflowBuilder().loop(
        "shout",
        body,
        init={"text": "input.text"},
        while_="len(input.text) < 10",
        next_={"text": "grow.text"},
        max_iterations=20,
    )


def main() -> None:
    """Shout."""
    run = play("example_loop", workflow(), text="hello")
    print(f"loop: {run.output('shout.text')} after {run.output('shout.iterations')} iterations")


if __name__ == "__main__":
    main()
