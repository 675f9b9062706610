"""Timers: a delay, a time, a deadline. `python -m examples.control_flow.timers`."""

from clawdbot import WorkflowBuilder
from examples.control_flow.play import play


def workflow() -> WorkflowBuilder:
    """Return a wait, and another one that does not end in time."""
    slow = WorkflowBuilder().delay("sleep", 3600, timeout_s=3600)
    bounded = WorkflowBuilder().foreach("once", "[1]", slow, timeout_s=0.5)
    late = WorkflowBuilder().add_node("late", template="gave up waiting")
    return (
        WorkflowBuilder(timeout_s=60)
        .delay("pause", 0.3)
        .try_("guard", bounded, catch=late)
        .connect("pause", "guard")
    )


def main() -> None:
    """Wait a little, then not for an hour."""
    run = play("example_timers", workflow())
    print(f"timers: {run.output('guard.text')} after {run.duration_ms / 1000:.1f} s")


if __name__ == "__main__":
    main()
