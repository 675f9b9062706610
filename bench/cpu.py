"""How much processor time each process took, which others on the machine hardly change."""

import os
from collections.abc import Mapping
from pathlib import Path


def seconds(pid: int) -> float:
    """Return the processor time a process took so far, user and system. Source: proc(5)."""
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    user, system = stat.rpartition(") ")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


class Meter:
    """Adds up what each process took between its making and a reading.

    Args:
        pids: Process ids by name.
    """

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = pids
        self._begun = {name: seconds(pid) for name, pid in pids.items()}

    def ms_each(self, runs: int) -> dict[str, float]:
        """Return milliseconds of processor time a run, by process and in `total`."""
        took = {
            name: (seconds(pid) - self._begun[name]) * 1000 / runs
            for name, pid in self._pids.items()
        }
        return {name: round(ms, 3) for name, ms in {**took, "total": sum(took.values())}.items()}
