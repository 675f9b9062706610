"""Rank items for somebody: `python -m examples.recommendation`."""

from clawdbot import Client, WorkflowBuilder


PROFILE = "I cook a lot, mostly Italian, and I like to know where my vegetables come from"
ITEMS = (
    "A pasta machine with rollers for three kinds of noodles",
    "A mountain bike with hydraulic brakes",
    "A book of seasonal vegetable recipes from Tuscany",
    "Noise cancelling headphones for the train",
    "A box of organic vegetables, delivered weekly",
)


def workflow() -> WorkflowBuilder:
    """Return two embeddings in parallel, a ranking of one by the other, and a list for people."""
    return (
        WorkflowBuilder()
        .add_node("profile", model="embedding-small", inputs={"text": "input.profile"})
        .add_node("items", model="embedding-small", inputs={"text": "input.items"})
        .add_node(
            "ranking",
            model="ranking",
            inputs={
                "query": "profile.embedding",
                "items": "items.embedding",
                "names": "input.items",
            },
        )
        .add_node("list", template_id="recommendation")
        .connect("profile", "ranking")
        .connect("items", "ranking")
        .connect("ranking", "list")
    )


def main() -> None:
    """Deploy, run, print the list."""
    with Client() as client:
        workflow().deploy("recommendation", client=client)
        run = client.run("recommendation", {"profile": PROFILE, "items": list(ITEMS)})
        print(run.output("list.text"))


if __name__ == "__main__":
    main()
