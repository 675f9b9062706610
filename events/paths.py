"""Paths of nodes and scopes inside a run.

A node of the outermost graph has its id for a path. A control node runs its graphs as *scopes*:
`each[3]` is the fourth iteration of `each`, `guard[catch]` the catch of `guard`; the run itself is
the scope `""`. A node inside is `each[3]/ocr`, so no two iterations ever mix.
"""

from collections.abc import Iterator


ROOT = ""


def node_path(scope: str, node_id: str) -> str:
    """Return the path of a node of a scope."""
    return f"{scope}/{node_id}" if scope else node_id


def scope_of(path: str) -> str:
    """Return the scope a node is in."""
    return path.rpartition("/")[0]


def node_id_of(path: str) -> str:
    """Return a node's id within its scope."""
    return path.rpartition("/")[2]


def scope_path(owner: str, label: str | int) -> str:
    """Return the scope that is one graph of a control node."""
    return f"{owner}[{label}]"


def owner_of(scope: str) -> tuple[str, str]:
    """Return the control node behind a scope, and which of its graphs or iterations it is."""
    owner, _, label = scope[:-1].rpartition("[")
    return owner, label


def steps_of(scope: str) -> Iterator[tuple[str, str]]:
    """Yield (node id, label) from the outermost control node to the innermost."""
    if scope:
        for part in scope.split("/"):
            yield owner_of(part)


def outwards(scope: str) -> Iterator[str]:
    """Yield a scope, the one around it, and so on to the run itself."""
    while scope:
        yield scope
        scope = scope_of(owner_of(scope)[0])
    yield ROOT


def is_inside(path: str, scope: str) -> bool:
    """Tell whether a node or scope is in a scope, at any depth."""
    return scope == ROOT or path.startswith(f"{scope}/")
