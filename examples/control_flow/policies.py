"""Policies of nodes: priority, keys, memos, retries. `python -m examples.control_flow.policies`."""

from clawdbot import Client, WorkflowBuilder
from examples.control_flow.play import play
from schemas.workflow import Concurrency, RetryPolicy


def workflow() -> WorkflowBuilder:
    """Return a patient, remembered model, and a step that is alone for each customer."""
    alone = WorkflowBuilder().delay("work", 0.05)
    return (
        WorkflowBuilder(priority="high")
        .add_node(
            "understand",
            model="intent-small",
            memo=3600,
            timeout_s=20,
            retry=RetryPolicy(max_attempts=5, backoff="exponential", jitter=0.5),
        )
        .foreach(
            "alone",
            "[1]",
            alone,
            concurrency=Concurrency(key="input.customer", limit=1),
            priority="low",
        )
        .connect("understand", "alone")
    )


def main() -> None:
    """Run it twice: the second one takes the first one's result."""
    play("example_policies", workflow(), text="play some music", customer="Ada")
    run = play("example_policies", workflow(), text="play some music", customer="Ada")
    with Client() as client:
        events = client.events(run.run_id)
    taken = [event.data["memo_of"] for event in events if event.data.get("memo_of")]
    queued = [event.data["key"] for event in events if event.type == "NodeQueued"]
    print(
        f"policies: result of {taken[0].partition('/')[2]} was remembered, queued for {queued[0]}"
    )


if __name__ == "__main__":
    main()
