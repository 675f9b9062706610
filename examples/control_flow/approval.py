"""A signal: a person decides. `python -m examples.control_flow.approval`."""

from clawdbot import Client, Run, WorkflowBuilder
from examples.control_flow.play import begin, play, watch


def workflow(timeout_s: float) -> WorkflowBuilder:
    """Return a wait for somebody's word, with a default when none comes."""
    return (
        WorkflowBuilder()
        .signal("approved", default={"by": "nobody"}, timeout_s=timeout_s)
        .add_node("say", template="{{approved.payload.by}} decided")
        .connect("approved", "say")
    )


def waits(run: Run) -> bool:
    """Tell whether the run waits for its signal."""
    return any(node.id == "approved" and node.status == "scheduled" for node in run.nodes)


def main() -> None:
    """Once somebody answers, after a pause; once nobody does."""
    run_id = begin("example_approval", workflow(3600))
    watch(run_id, waits)
    with Client() as client:
        client.pause(run_id, "lunch")
        client.signal(run_id, "approved", {"by": "Eve"})
        client.resume(run_id)
    run = watch(run_id, lambda run: run.over)
    print(f"approval: {run.output('say.text')}")
    run = play("example_approval", workflow(0.3))
    print(f"approval: {run.output('say.text')}")


if __name__ == "__main__":
    main()
