"""What each node of each workflow did, over all runs in the log: a projection of its events.

SQLite, one row for each run, node and model; a node inside a control node counts under its path
without iterations. Counts and whole microseconds only, so the order of commits of different runs
never shows: built bit by bit or all at once, the rows are the same to the bit. A retired run takes
its rows with it, as it takes its commits out of the log.
"""

import hashlib
import re
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from events.codec import RawEvent
from events.subjects import RunKey


_ITERATION = re.compile(r"\[\d+\]")
_COLUMNS = (
    "scheduled",
    "completed",
    "kept",
    "failed",
    "retried",
    "skipped",
    "queue_us",
    "load_us",
    "compute_us",
)
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS nodes (
    tenant TEXT, run_id TEXT, workflow TEXT, node TEXT, model TEXT,
    {", ".join(f"{name} INTEGER" for name in _COLUMNS)}, compute_us_max INTEGER,
    PRIMARY KEY (tenant, run_id, node, model)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS nodes_by_workflow ON nodes (tenant, workflow);
CREATE TABLE IF NOT EXISTS checkpoint (one INTEGER PRIMARY KEY, created TEXT, sequence INTEGER);
"""
_ADD = f"""
INSERT INTO nodes VALUES (?, ?, ?, ?, ?, {", ".join("?" for _ in _COLUMNS)}, ?)
ON CONFLICT DO UPDATE SET {", ".join(f"{name}={name}+excluded.{name}" for name in _COLUMNS)},
    compute_us_max=max(compute_us_max, excluded.compute_us_max)
"""  # noqa: S608 - columns of ours
_NODES = f"""
SELECT workflow, node, count(DISTINCT run_id), {", ".join(f"sum({name})" for name in _COLUMNS)},
    max(compute_us_max)
FROM nodes WHERE tenant=?1 AND (?2 IS NULL OR workflow=?2)
GROUP BY workflow, node ORDER BY workflow, node LIMIT ?3
"""  # noqa: S608 - columns of ours
_MODELS = """
SELECT model, sum(completed), sum(compute_us), max(compute_us_max)
FROM nodes WHERE tenant=?1 AND workflow=?2 AND node=?3 AND completed > 0
GROUP BY model ORDER BY model
"""

Counts = dict[tuple[str, str], list[int]]
"""By node and model: the columns in order, then the largest computing time."""


@dataclass(frozen=True)
class ModelStatistics:
    """One model under one node; times in microseconds."""

    model: str
    completed: int
    compute_us: int
    compute_us_max: int


@dataclass(frozen=True)
class NodeStatistics:
    """One node of one workflow over all runs in the log; times in microseconds, summed up."""

    workflow: str
    node: str
    runs: int
    scheduled: int
    completed: int
    kept: int
    failed: int
    retried: int
    skipped: int
    queue_us: int
    load_us: int
    compute_us: int
    compute_us_max: int
    models: tuple[ModelStatistics, ...] = ()


class Statistics:
    """Keeps the projection and answers from it.

    Args:
        path: The SQLite file, or `:memory:`.
    """

    def __init__(self, path: str | Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; {_SCHEMA}")
        self.created, self.position = self._checkpoint()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def begin(self, created: str, last: int) -> None:
        """Take up where it stopped; all over again when the log is another one.

        Args:
            created: When the stream was created.
            last: Its last sequence.
        """
        if self.created != created or self.position > last:
            self._db.executescript("DELETE FROM nodes; DELETE FROM checkpoint;")
            self.created, self.position = created, 0

    def apply(self, batch: Iterable[tuple[RunKey, int, str, Iterable[RawEvent] | None]]) -> None:
        """Record commits in the order of the log, in one transaction; a repeated one is ignored.

        Args:
            batch: (run, sequence, workflow, events) of each; events are None for a tombstone.
        """
        position = self.position
        sums: dict[RunKey, dict[tuple[str, str, str], list[int]]] = {}
        retired: list[tuple[str, str]] = []
        for key, sequence, workflow, events in batch:
            if sequence <= position:
                continue
            position = sequence
            if events is None:
                sums.pop(key, None)
                retired.append((key.tenant, key.run_id))
                continue
            known = sums.setdefault(key, {})
            for (node, model), counts in counted(events).items():
                before = known.get((workflow, node, model))
                known[workflow, node, model] = _added(before, counts) if before else counts
        rows: list[tuple[str | int, ...]] = [
            (key.tenant, key.run_id, *names, *counts)
            for key, known in sums.items()
            for names, counts in known.items()
        ]
        self._write(rows, retired, position)
        self.position = position

    def _write(
        self, rows: list[tuple[str | int, ...]], retired: list[tuple[str, str]], position: int
    ) -> None:
        self._db.execute("BEGIN")
        try:
            self._db.executemany("DELETE FROM nodes WHERE tenant=? AND run_id=?", retired)
            self._db.executemany(_ADD, rows)
            self._db.execute(
                "INSERT OR REPLACE INTO checkpoint VALUES (1, ?, ?)", (self.created, position)
            )
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def nodes(self, tenant: str, workflow: str | None, limit: int) -> list[NodeStatistics]:
        """Return a tenant's nodes by workflow and node, at most `limit`."""
        found: list[NodeStatistics] = []
        for row in self._db.execute(_NODES, (tenant, workflow, limit)).fetchall():
            models = self._db.execute(_MODELS, (tenant, row[0], row[1]))
            each = tuple(ModelStatistics(*item) for item in models)
            found.append(NodeStatistics(*(*row, each)))
        return found

    def digest(self) -> str:
        """Return SHA-256 over all rows in order."""
        return digest_of(self._db, "nodes")

    def _checkpoint(self) -> tuple[str, int]:
        row = self._db.execute("SELECT created, sequence FROM checkpoint").fetchone()
        return ("", 0) if row is None else (str(row[0]), int(row[1]))


def digest_of(db: sqlite3.Connection, table: str) -> str:
    """Return SHA-256 over a table's rows in the order of its primary key."""
    found = hashlib.sha256()
    for row in db.execute(f"SELECT * FROM {table} ORDER BY 1, 2, 3, 4, 5"):  # noqa: S608 - a table of ours
        found.update(repr(row).encode() + b"\n")
    return found.hexdigest()


def counted(events: Iterable[RawEvent]) -> Counts:
    """Return what events say of nodes."""
    counts: Counts = {}
    for name, state in events:
        count = _COUNTERS.get(name)
        if count is not None:
            node = _ITERATION.sub("", state["node_id"])
            key = (node, str(state.get("model", "")))
            count(counts.setdefault(key, [0] * (len(_COLUMNS) + 1)), state)
    return counts


def _added(left: list[int], right: list[int]) -> list[int]:
    """Return the sums of two rows of counts, and the larger of their largest times."""
    sums = [one + other for one, other in zip(left, right, strict=True)]
    sums[-1] = max(left[-1], right[-1])
    return sums


def _scheduled(row: list[int], _: Mapping[str, Any]) -> None:
    row[0] += 1


def _completed(row: list[int], state: Mapping[str, Any]) -> None:
    timings = state.get("timings", {})
    row[1] += 1
    for place, name in ((6, "queue_ms"), (7, "load_ms"), (8, "compute_ms")):
        row[place] += _us(timings.get(name, 0.0))
    row[9] = max(row[9], _us(timings.get("compute_ms", 0.0)))


def _kept(row: list[int], _: Mapping[str, Any]) -> None:
    row[2] += 1


def _failed(row: list[int], state: Mapping[str, Any]) -> None:
    row[3 if state.get("retry_at") is None else 4] += 1


def _skipped(row: list[int], _: Mapping[str, Any]) -> None:
    row[5] += 1


def _us(ms: float) -> int:
    return round(ms * 1000)


_COUNTERS: dict[str, Callable[[list[int], Mapping[str, Any]], None]] = {
    "NodeScheduled": _scheduled,
    "NodeCompleted": _completed,
    "NodeKept": _kept,
    "NodeFailed": _failed,
    "NodeSkipped": _skipped,
}
