"""Play seeds: `python -m tests.support.sim --first-seed 7 --seeds 100`."""

import argparse
import gc
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial

from tests.support.sim.mutants import MUTANTS
from tests.support.sim.play import SCENARIOS, play
from tests.support.sim.scenario import Outcome


CHUNK = 4


def outcomes(seeds: range, asked: argparse.Namespace) -> Iterator[Outcome]:
    """Play seeds on several processors; in order."""
    one = partial(play, scenario=asked.scenario, said=asked.say, without=asked.without)
    if asked.jobs == 1 or asked.say or len(seeds) == 1:
        yield from map(one, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(asked.jobs, gc.freeze) as pool:
        yield from pool.imap(one, seeds, CHUNK)


def report(outcome: Outcome, scenario: str) -> None:
    """Say what is wrong with a seed, and how to see it again."""
    more = "" if scenario == "usual" else f' ARGS="--scenario {scenario}"'
    again = f"make simulate FIRST_SEED={outcome.seed} SEEDS=1{more}"
    print(f"seed {outcome.seed} failed; again: {again}")
    for text in outcome.wrong:
        print(f"  {text}")


def main() -> int:
    """Play what the command line asks for; 1 if a seed failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.sim")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--say", action="store_true", help="print log lines and tracebacks")
    parser.add_argument("--scenario", choices=sorted(SCENARIOS), default="usual")
    told = "take a safeguard out, stop at the first seed that tells"
    parser.add_argument("--without", choices=sorted(MUTANTS), default="", help=told)
    asked = parser.parse_args()
    gc.freeze()
    begun = time.perf_counter()
    happened: Counter[str] = Counter()
    failed = 0
    seeds = range(asked.first_seed, asked.first_seed + asked.seeds)
    for outcome in outcomes(seeds, asked):
        happened += outcome.happened
        sys.stdout.flush()
        if asked.seeds == 1:
            print(f"trace {outcome.trace}, {outcome.seconds:.3f} virtual s, {outcome.steps} steps")
        if outcome.wrong:
            failed += 1
            report(outcome, asked.scenario)
            if asked.without:
                return 1
    took_s = time.perf_counter() - begun
    faults = sum(happened.values())
    print(
        f"{len(seeds)} seeds from {seeds.start}: {failed} failed, {faults} faults, {took_s:.1f} s"
    )
    for name, count in sorted(happened.items()):
        print(f"  {count:6} {name}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
