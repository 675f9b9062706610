"""A foreach: each item, three at once, until enough. `python -m examples.control_flow.foreach`."""

from clawdbot import WorkflowBuilder
from examples.control_flow.play import play


def workflow() -> WorkflowBuilder:
    """Return a foreach that understands sentences and stops when one is about music."""
    body = WorkflowBuilder().add_node("nlu", model="intent-small", inputs={"text": "input.line"})
    return WorkflowBuilder().foreach(
        "each",
        "input.lines",
        body,
        as_="line",
        max_parallel=3,
        collect='{"line": input.line, "intent": nlu.intent}',
        until='nlu.intent == "music"',
    )


def main() -> None:
    """Understand a list."""
    lines = ["how is the weather", "turn on the lights", "play some music", *["good morning"] * 20]
    run = play("example_foreach", workflow(), lines=lines)
    found = run.output("each.items")
    print(f"foreach: {run.output('each.count')} of {len(lines)} lines: {found[:3]}")


if __name__ == "__main__":
    main()
