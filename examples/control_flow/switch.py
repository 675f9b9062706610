"""A switch: be sure, or ask. `python -m examples.control_flow.switch`."""

from clawdbot import WorkflowBuilder
from examples.control_flow.play import play


def workflow() -> WorkflowBuilder:
    """Return a model whose confidence decides which way to go."""
    return (
        WorkflowBuilder()
        .add_node("nlu", model="intent-small")
        .switch("route", cases={"sure": "nlu.confidence > 0.8"}, default="ask")
        .add_node("do", template="Doing {{nlu.intent}}.")
        .add_node("ask", template="Did you mean {{nlu.intent}}?")
        .add_node("say", template="{{do.text}}{{ask.text}}")
        .connect("nlu", "route")
        .connect("route", "do", case="sure")
        .connect("route", "ask", case="ask")
        .connect("do", "say")
        .connect("ask", "say")
    )


def main() -> None:
    """Say something clear, and something that is not."""
    for text in ("how is the weather", "hmm well"):
        run = play("example_switch", workflow(), text=text)
        skipped = [node.id for node in run.nodes if node.status == "skipped"]
        print(f"switch: {text!r} -> {run.output('say.text')} (skipped: {', '.join(skipped)})")


if __name__ == "__main__":
    main()
