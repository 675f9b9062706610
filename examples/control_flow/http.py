"""An http node calls outside. `python -m examples.control_flow.http`.

Public addresses need no setting. This one asks the gateway itself, at a private address, which the
mesh must allow: `CLAWDBOT_HTTP_ALLOW=127.0.0.1 clawdbot up`. Without it you see the refusal.
"""

from clawdbot import Client, WorkflowBuilder
from examples.control_flow.play import play
from schemas.workflow import RetryPolicy


def workflow(url: str) -> WorkflowBuilder:
    """Return a call with a query, retries and a memo, and what happens when it is refused."""
    call = (
        WorkflowBuilder()
        .http(
            "call",
            f"{url}/v1/runs",
            inputs={"query": '= {"limit": 1}'},
            timeout_s=5,
            retry=RetryPolicy(max_attempts=3, initial_delay_s=0.2, jitter=0.2),
            memo=60,
        )
        .add_node("say", template="status {{call.status}}, {{call.headers.content-type}}")
        .connect("call", "say")
    )
    refused = WorkflowBuilder().add_node("why", template="{{input.error.message}}")
    return WorkflowBuilder().try_("guard", call, catch=refused)


def main() -> None:
    """Call."""
    with Client() as client:
        url = client.url
    run = play("example_http", workflow(url))
    print(f"http: {run.output('guard.text')}")


if __name__ == "__main__":
    main()
