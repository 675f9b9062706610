"""How comparisons of runs look on a screen."""

from rich.table import Table

from clawdbot.cli.output import Screen, brief, counted
from clawdbot.comparison import Comparison, Difference, NodeComparison
from clawdbot.regression import Regression


DIFFERENCES_SHOWN = 20
"""Fields of one node that are printed; --json has them all."""
RUNS_SHOWN = 10


def show_comparison(screen: Screen, found: Comparison) -> None:
    """Print two runs side by side: first where they part, then field by field, then times."""
    screen.print(f"a: run {found.a}, {found.status[0]}\nb: run {found.b}, {found.status[1]}")
    for difference in found.inputs:
        screen.print(f"input {_line(difference)}")
    if found.same:
        screen.print("the same: every node gave the same")
    elif found.first is None:
        screen.print("every node gave the same, but the runs ended differently")
    else:
        screen.print(f"first node that differs: {found.first}")
    for node in found.nodes:
        if not node.same:
            _show_node(screen, node)
    screen.print(_times(found))


def show_regression(screen: Screen, found: Regression) -> None:
    """Print how often recorded runs agree with a change, and how fast it is."""
    changes = ", ".join(f"{path}={brief(value)}" for path, value in found.changes.items())
    screen.print(
        f"{found.workflow} with {changes or 'nothing changed'}: "
        f"{counted(found.runs, 'recorded run')}"
    )
    if not found.runs:
        screen.note("there are no completed runs of it")
        return
    screen.print(
        f"agree {found.agreed} of {found.runs} ({found.agreed / found.runs:.1%}); "
        f"{found.failed} failed, {found.unforked} could not be forked"
    )
    fields = Table("output", "agree", "similarity", "max abs", "cosine")
    for field in found.fields:
        share = f"{field.agreed} of {field.compared}"
        numbers = (field.similarity, field.max_abs, field.cosine)
        fields.add_row(field.field, share, *(_number(number) for number in numbers))
    screen.print(fields)
    times = Table(title="medians, milliseconds", title_justify="left")
    for column in ("node that ran", "runs", "total old", "new", "compute old", "new"):
        times.add_column(column, justify="left" if column.startswith("node") else "right")
    for node in found.latency:
        compute = (node.old_compute_ms, node.new_compute_ms)
        total = (node.old_total_ms, node.new_total_ms)
        cells = [_ms(time) for time in (*total, *compute)]
        times.add_row(node.node, str(node.runs), *cells)
    screen.print(times)
    for run_id, fork_id in found.differing[:RUNS_SHOWN]:
        screen.print(f"differs: clawdbot diff {run_id} {fork_id}")
    for run_id, why in found.errors[:RUNS_SHOWN]:
        screen.print(f"not forked: {run_id}: {why}")


def _show_node(screen: Screen, node: NodeComparison) -> None:
    models = "" if node.model[0] == node.model[1] else f", model {node.model[0]} -> {node.model[1]}"
    states = (
        node.status[0] if node.status[0] == node.status[1] else " -> ".join(map(str, node.status))
    )
    screen.print(f"node {node.node}: {states}{models}")
    for difference in node.differences[:DIFFERENCES_SHOWN]:
        screen.print(f"  {_line(difference)}")
    left = len(node.differences) - DIFFERENCES_SHOWN
    if left > 0:
        screen.print(f"  and {left} fields more; --json has them")


def _line(difference: Difference) -> str:
    figures = {
        "similarity": difference.similarity,
        "max abs": difference.max_abs,
        "cosine": difference.cosine,
    }
    said = [f"{name} {_number(value)}" for name, value in figures.items() if value is not None]
    words = f"{difference.path} ({', '.join([difference.kind, *said])})"
    return f"{words}: {brief(difference.a)} -> {brief(difference.b)}"


def _times(found: Comparison) -> Table:
    table = Table(title="milliseconds", title_justify="left")
    for column in ("node", "total a", "b", "compute a", "b"):
        table.add_column(column, justify="left" if column == "node" else "right")
    for node in found.nodes:
        total = [_ms(time, kept=node.kept[side]) for side, time in enumerate(node.total_ms)]
        table.add_row(node.node, *total, *(_ms(time) for time in node.compute_ms))
    table.add_row("the run", *(_ms(time) for time in found.duration_ms), "", "")
    return table


def _ms(time: float | None, *, kept: bool = False) -> str:
    if kept:
        return "kept"
    return "" if time is None else f"{time:.1f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
