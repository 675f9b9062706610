"""The mesh under seeded faults: production orchestrators and workers over a server in memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[2]


def simulate(*arguments: str, hash_seed: str = "0") -> subprocess.CompletedProcess[str]:
    """Play seeds in processes of their own."""
    return subprocess.run(  # noqa: S603 - our own module
        [sys.executable, "-m", "tests.support.sim", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},  # noqa: TID251 - handed to a child
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.timeout(600)
def test_every_seed_keeps_every_promise(seeds: range) -> None:
    """Whatever goes wrong: nothing accepted is lost, recorded twice or forked, and all runs end."""
    done = simulate("--first-seed", str(seeds.start), "--seeds", str(len(seeds)))
    assert 0 == done.returncode, done.stdout + done.stderr


def test_a_seed_replays_exactly() -> None:
    """The same seed sends the same bytes at the same moments, whatever Python hashes strings to."""
    first, second = (
        simulate("--first-seed", "34", "--seeds", "1", hash_seed=seed) for seed in ("1", "4242")
    )
    assert first.stdout.startswith("trace "), first.stdout + first.stderr
    assert first.stdout.splitlines()[0] == second.stdout.splitlines()[0]


def test_an_older_copy_of_the_log_is_refused() -> None:
    """A server that lost what was committed is noticed within 30 s, and nothing is added to it."""
    done = simulate("--scenario", "regression", "--seeds", "8")
    assert 0 == done.returncode, done.stdout + done.stderr
    blind = simulate("--scenario", "regression", "--seeds", "8", "--without", "loss evidence")
    assert 1 == blind.returncode, blind.stdout + blind.stderr


def test_a_flood_of_submissions_lets_others_past() -> None:
    """In the order of the log: single ones soon, a heavy tenant by its weight."""
    done = simulate("--scenario", "flood", "--seeds", "2")
    assert 0 == done.returncode, done.stdout + done.stderr
    unfair = simulate("--scenario", "flood", "--seeds", "1", "--without", "fair shares")
    assert 1 == unfair.returncode, unfair.stdout + unfair.stderr


@pytest.mark.parametrize(
    "safeguard", ["optimistic concurrency", "fencing", "ack after commit", "controls in order"]
)
@pytest.mark.timeout(300)
def test_the_checker_misses_what_is_taken_out(safeguard: str) -> None:
    """Within 200 seeds the checker notices that a safeguard is gone; with it the seed is fine."""
    told = simulate("--seeds", "200", "--jobs", "1", "--without", safeguard)
    assert 1 == told.returncode, told.stdout + told.stderr
    seed = told.stdout.split()[1]
    whole = simulate("--first-seed", seed, "--seeds", "1")
    assert 0 == whole.returncode, whole.stdout + whole.stderr
