"""Play seeds: `python -m tests.support.sim --first-seed 7 --seeds 100`."""

import argparse
import gc
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator

from tests.support.sim.scenario import Outcome, play


CHUNK = 4


def outcomes(seeds: range, jobs: int) -> Iterator[Outcome]:
    """Play seeds on several processors; in order."""
    if jobs == 1:
        yield from map(play, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(jobs, gc.freeze) as pool:
        yield from pool.imap(play, seeds, CHUNK)


def main() -> int:
    """Play what the command line asks for; tell what failed and how to see it again."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.sim")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--say", action="store_true", help="print the log lines; of one seed")
    asked = parser.parse_args()
    gc.freeze()
    begun = time.perf_counter()
    happened: Counter[str] = Counter()
    failed = 0
    seeds = range(asked.first_seed, asked.first_seed + asked.seeds)
    played = (play(seed, said=True) for seed in seeds) if asked.say else outcomes(seeds, asked.jobs)
    for outcome in played:
        happened += outcome.happened
        if asked.seeds == 1:
            print(f"trace {outcome.trace}, {outcome.seconds:.3f} virtual s, {outcome.steps} steps")
        if outcome.wrong:
            failed += 1
            print(
                f"seed {outcome.seed} failed; again: "
                f"make simulate FIRST_SEED={outcome.seed} SEEDS=1"
            )
            for text in outcome.wrong:
                print(f"  {text}")
    took_s = time.perf_counter() - begun
    print(
        f"{len(seeds)} seeds from {seeds.start}, {failed} failed, "
        f"{sum(happened.values())} faults, {took_s:.1f} s"
    )
    for name, count in sorted(happened.items()):
        print(f"  {count:6} {name}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
