"""Plays one seed of a scenario."""

import shutil
import tempfile
from contextlib import nullcontext
from pathlib import Path

from tests.support.sim import mutants
from tests.support.sim.flood import Flood
from tests.support.sim.regression import Regression
from tests.support.sim.scenario import Outcome, Scenario


SCENARIOS: dict[str, type[Scenario]] = {
    "usual": Scenario,
    "regression": Regression,
    "flood": Flood,
}


def play(seed: int, *, scenario: str = "usual", said: bool = False, without: str = "") -> Outcome:
    """Play one seed, perhaps without one of the safeguards in `mutants`."""
    shared = Path("/dev/shm")  # noqa: S108 - memory instead of a disk, where there is some
    parent = shared if shared.is_dir() else None
    folder = Path(tempfile.mkdtemp(prefix="simulation-", dir=parent))
    try:
        with mutants.without(without) if without else nullcontext():
            return SCENARIOS[scenario](seed, folder).play(said=said)
    finally:
        shutil.rmtree(folder)
