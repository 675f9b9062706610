"""Recorded runs against a change: how often the outputs agree, and how fast the change is. Pure.

Each recorded run is forked with the change, and the fork is compared with it.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from clawdbot.comparison import Comparison, Difference
from clawdbot.results import Run
from schemas.errors import InvalidArgument
from schemas.message import Message


RUNS_MAX = 10_000
"""Recorded runs that one regression goes through."""
PARALLEL_MAX = 64
"""Forks under way at the same time."""
PAGE = 500


@dataclass(frozen=True)
class Trial:
    """One recorded run and what became of its fork."""

    run: Run
    fork_id: str = ""
    comparison: Comparison | None = None
    error: str = ""
    """Why there is no comparison."""


class FieldAgreement(Message):
    """One output of the workflow, or of a node that ran, over all runs."""

    field: str
    """`node.output`."""
    compared: int
    agreed: int
    similarity: float | None = None
    """Of texts, mean over all runs, equal ones as 1."""
    max_abs: float | None = None
    """Of numbers, vectors and tensors: the largest difference of all runs."""
    cosine: float | None = None
    """Of vectors and tensors: the smallest of all runs."""


class NodeLatency(Message):
    """A node that ran in the forks: medians over all runs, milliseconds."""

    node: str
    runs: int
    old_total_ms: float
    """From its decision to its result."""
    new_total_ms: float
    old_compute_ms: float | None
    new_compute_ms: float | None


class Regression(Message):
    """What a change does to recorded runs."""

    workflow: str
    changes: dict[str, object]
    runs: int
    compared: int
    agreed: int
    """Runs whose outputs are all the same."""
    failed: int
    """Forks that did not complete although the recorded run had."""
    unforked: int
    """Runs that could not be forked, or not within the time."""
    fields: tuple[FieldAgreement, ...]
    latency: tuple[NodeLatency, ...]
    differing: tuple[tuple[str, str], ...]
    """(recorded run, fork) where an output differs or the fork failed."""
    errors: tuple[tuple[str, str], ...]
    """(recorded run, why) of those that could not be forked."""


def check_bounds(last: int, parallel: int) -> None:
    """Refuse a regression that is too large.

    Raises:
        InvalidArgument: It is; names the argument.
    """
    if not 1 <= last <= RUNS_MAX:
        raise InvalidArgument(f"go through 1 to {RUNS_MAX} runs", field="last")
    if not 1 <= parallel <= PARALLEL_MAX:
        raise InvalidArgument(f"fork 1 to {PARALLEL_MAX} runs at a time", field="parallel")


def summarise(workflow: str, changes: dict[str, object], trials: Iterable[Trial]) -> Regression:
    """Sum up the trials of a regression.

    Args:
        workflow: Its name.
        changes: What was changed.
        trials: One for each recorded run.
    """
    found = list(trials)
    outputs = {node for trial in found for node in trial.run.outputs or {}}
    pairs = [(trial, trial.comparison) for trial in found if trial.comparison is not None]
    whole = [pair for _, pair in pairs if pair.status[1] == "completed"]
    differing = [
        trial for trial, pair in pairs if pair.status[1] != "completed" or _differs(pair, outputs)
    ]
    return Regression(
        workflow=workflow,
        changes=changes,
        runs=len(found),
        compared=len(whole),
        agreed=sum(not _differs(pair, outputs) for pair in whole),
        failed=len(pairs) - len(whole),
        unforked=len(found) - len(pairs),
        fields=tuple(_fields(whole, outputs)),
        latency=tuple(_latencies(whole)),
        differing=tuple((trial.run.run_id, trial.fork_id) for trial in differing),
        errors=tuple(
            (trial.run.run_id, trial.error) for trial in found if trial.comparison is None
        ),
    )


def _differs(pair: Comparison, outputs: set[str]) -> bool:
    return any(not node.same for node in pair.nodes if node.node in outputs)


def _fields(pairs: Sequence[Comparison], outputs: set[str]) -> Iterator[FieldAgreement]:
    """Yield the agreement of each output of the workflow, and of each node that ran."""
    compared: dict[str, int] = defaultdict(int)
    apart: dict[str, list[list[Difference]]] = defaultdict(list)
    for pair in pairs:
        for node in pair.nodes:
            if "[" in node.node or (node.node not in outputs and node.kept[1]):
                continue
            by_field: dict[str, list[Difference]] = defaultdict(list)
            for difference in node.differences:
                top = difference.path.partition(".")[0].partition("[")[0]
                by_field[f"{node.node}.{top}"].append(difference)
            for name in {*(f"{node.node}.{name}" for name in node.gave), *by_field}:
                compared[name] += 1
            for name, differences in by_field.items():
                apart[name].append(differences)
    for name, count in sorted(compared.items()):
        yield _field(name, count, apart[name])


def _field(name: str, count: int, apart: Sequence[Sequence[Difference]]) -> FieldAgreement:
    every = [difference for differences in apart for difference in differences]
    texts = [item.similarity for item in every if item.similarity is not None]
    far = [item.max_abs for item in every if item.max_abs is not None]
    angles = [item.cosine for item in every if item.cosine is not None]
    agreed = count - len(apart)
    return FieldAgreement(
        field=name,
        compared=count,
        agreed=agreed,
        similarity=(sum(texts) + agreed) / (len(texts) + agreed) if texts else None,
        max_abs=max(far, default=None),
        cosine=min(angles, default=None),
    )


def _latencies(pairs: Sequence[Comparison]) -> Iterator[NodeLatency]:
    """Yield the medians of each node that ran in the forks."""
    totals: dict[str, list[tuple[float, float]]] = defaultdict(list)
    computes: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for pair in pairs:
        for node in pair.nodes:
            old, new = node.total_ms
            if old is None or new is None or node.kept[1]:
                continue
            totals[node.node].append((old, new))
            if node.compute_ms[0] is not None and node.compute_ms[1] is not None:
                computes[node.node].append((node.compute_ms[0], node.compute_ms[1]))
    for name, times in totals.items():
        inner = computes[name]
        yield NodeLatency(
            node=name,
            runs=len(times),
            old_total_ms=round(median(old for old, _ in times), 3),
            new_total_ms=round(median(new for _, new in times), 3),
            old_compute_ms=round(median(old for old, _ in inner), 3) if inner else None,
            new_compute_ms=round(median(new for _, new in inner), 3) if inner else None,
        )
