"""What users write: every mistake is named."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import InvalidArgument
from schemas.workflow import EDGES_MAX, NODES_MAX, parse_definition


def node(node_id: str, **rest: Any) -> dict[str, Any]:
    """Return a model node."""
    return {"id": node_id, "type": "model", "params": {"model": "echo"}, **rest}


def edge(source: str, target: str) -> dict[str, str]:
    """Return an edge."""
    return {"source": source, "target": target}


def graph(*nodes: dict[str, Any], edges: list[dict[str, str]] | None = None) -> dict[str, Any]:
    """Return a definition."""
    return {"nodes": list(nodes), "edges": edges or []}


A, B, C = node("a"), node("b"), node("c")


@pytest.mark.parametrize(
    ("field", "message", "document"),
    [
        (None, "valid dictionary|object", []),
        (None, "valid dictionary|object", "text"),
        ("nodes", "required", {}),
        ("nodes", "at least 1", graph()),
        ("nodes", f"at most {NODES_MAX}", graph(*[node(f"n{i}") for i in range(NODES_MAX + 1)])),
        ("edges", f"at most {EDGES_MAX}", graph(A, edges=[edge("a", "a")] * (EDGES_MAX + 1))),
        ("extra", "not permitted", {**graph(A), "extra": 1}),
        ("nodes[1].id", "letters", graph(A, node("b.c"))),
        ("nodes[0].id", "letters", graph(node(""))),
        ("nodes[0].id", "string", graph({**A, "id": 7})),
        ("nodes[1].type", "model", graph(A, {**B, "type": "python"})),
        ("nodes[0].modle", "not permitted", graph(node("a", modle="x"))),
        ("nodes[0].timeout_s", "greater than 0", graph(node("a", timeout_s=0))),
        ("nodes[0].timeout_s", "3600", graph(node("a", timeout_s=3601))),
        ("nodes[0].retry.max_attempts", "10", graph(node("a", retry={"max_attempts": 11}))),
        ("nodes[0].retry.max_attempts", "1", graph(node("a", retry={"max_attempts": 0}))),
        ("nodes[1].id", "used twice", graph(A, A, B)),
        ("edges[0].target", "no node 'z'", graph(A, edges=[edge("a", "z")])),
        ("edges[1].source", "no node 'z'", graph(A, B, edges=[edge("a", "b"), edge("z", "a")])),
        ("edges[0]", "feed itself", graph(A, edges=[edge("a", "a")])),
        ("edges[1]", "twice", graph(A, B, edges=[edge("a", "b"), edge("a", "b")])),
        ("edges[0].target", "required", graph(A, edges=[{"source": "a"}])),
        ("edges", "cycle through a, b", graph(A, B, C, edges=[edge("a", "b"), edge("b", "a")])),
    ],
)
def test_mistakes_are_named(field: str | None, message: str, document: Any) -> None:
    """A definition with one mistake is refused with its place and what is wrong."""
    with pytest.raises(InvalidArgument, match=message) as caught:
        parse_definition(document)
    assert field == caught.value.field


def test_isolated_nodes_are_fine() -> None:
    """Nodes without edges all run."""
    assert ["a", "b"] == parse_definition(graph(A, B)).check_graph()


def test_digest_ignores_the_writing() -> None:
    """Key order and spelled-out defaults do not change the digest; content does."""
    short = parse_definition({"nodes": [A]})
    long = parse_definition(
        {
            "edges": [],
            "nodes": [{"params": {"model": "echo"}, "type": "model", "id": "a", "inputs": {}}],
        }
    )
    other = parse_definition({"nodes": [B]})
    assert short.digest() == long.digest()
    assert short.digest() != other.digest()


@st.composite
def dags(draw: st.DrawFn) -> tuple[list[str], list[tuple[str, str]]]:
    """Draw a shuffled acyclic graph."""
    count = draw(st.integers(1, 12))
    names = [f"n{index}" for index in range(count)]
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    edges = draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    return draw(st.permutations(names)), edges


@given(dags())
def test_order_is_topological(dag: tuple[list[str], list[tuple[str, str]]]) -> None:
    """Every acyclic graph is accepted, and every edge points forward in the order."""
    names, edges = dag
    document = graph(*map(node, names), edges=[edge(*pair) for pair in edges])
    order = parse_definition(document).check_graph()
    assert sorted(names) == sorted(order)
    assert all(order.index(source) < order.index(target) for source, target in edges)


@given(dags(), st.data())
def test_every_cycle_is_found(
    dag: tuple[list[str], list[tuple[str, str]]], data: st.DataObject
) -> None:
    """An edge back along any edge makes a cycle, and it is refused."""
    names, edges = dag
    if not edges:
        return
    source, target = data.draw(st.sampled_from(edges))
    document = graph(
        *map(node, names), edges=[*[edge(*pair) for pair in edges], edge(target, source)]
    )
    with pytest.raises(InvalidArgument, match="cycle"):
        parse_definition(document)
