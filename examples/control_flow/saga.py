"""Compensation: what was done is undone. `python -m examples.control_flow.saga`."""

from clawdbot import WorkflowBuilder
from examples.control_flow.play import play


def undo(what: str) -> WorkflowBuilder:
    """Return a graph that takes a booking back."""
    return WorkflowBuilder().add_node("undo", template=f"{what} {{{{input.outputs.text}}}}")


def workflow() -> WorkflowBuilder:
    """Return two bookings and a payment that fails."""
    return (
        WorkflowBuilder()
        .add_node("flight", template="flight 7", compensate=undo("cancelled"))
        .add_node("hotel", template="room 12", compensate=undo("released"))
        .add_node("pay", model="echo", inputs={"text": "input.card"})
        .connect("flight", "hotel")
        .connect("hotel", "pay")
    )


def main() -> None:
    """Fail, and see the bookings undone, the newest first."""
    run = play("example_saga", workflow(), card="9" * 20_000)
    done = [node.outputs["text"] for node in run.nodes if node.outputs and "undo" in node.id]
    print(f"saga: {run.status}; {', '.join(done)}")


if __name__ == "__main__":
    main()
