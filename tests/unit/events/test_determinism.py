"""Folding and deciding read nothing but what they are given: no clock, no random, no environment.

Three proofs. Nothing pure imports a source of surprise. While every scenario is decided and folded
anew, each call into C and each frame is watched, and none is a clock, a generator, the environment,
a file or a socket. And other processes, with other hash seeds, time zones and environments, come to
the same bytes.
"""

import datetime as dt
import gc
import hashlib
import os
import random
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import orjson
import pytest

from events.catalog import SHORT_NAMES, Event
from events.evolve import fold
from tests.conformance.golden.make import HERE, STATE, STORED, read_history
from tests.support.code import ROOT, imports, parse
from tests.support.scenarios import scenarios


PURE = (
    "events/catalog.py",
    "events/commands.py",
    "events/controls.py",
    "events/evolve.py",
    "events/fork.py",
    "events/paths.py",
    "events/routes.py",
    "events/run.py",
    "events/state.py",
    "events/turn.py",
    "events/view.py",
    "schemas/expressions.py",
    "schemas/inputs.py",
    "schemas/message.py",
    "schemas/messages.py",
    "schemas/mustache.py",
    "schemas/plan.py",
    "schemas/values.py",
)
SURPRISES = {
    "asyncio", "datetime", "io", "locale", "nats", "os", "pathlib", "platform", "random", "secrets",
    "select", "socket", "subprocess", "sys", "tempfile", "threading", "time", "uuid", "zoneinfo",
}  # fmt: skip
C_MODULES = {"time", "_random", "posix", "nt", "_socket", "_uuid", "_io", "io", "_datetime"}
MODULES = {"random", "uuid", "secrets", "socket", "os", "tempfile", "locale"}
CLOCKS = {"now", "utcnow", "today"}
HISTORIES = sorted(path for path in HERE.glob("*.jsonl") if path not in STORED)


@contextmanager
def watched() -> Iterator[set[str]]:
    """Collect every call that could bring something from outside."""
    found: set[str] = set()

    def watch(frame: FrameType, event: str, what: Any) -> None:
        if event == "c_call":
            owner = getattr(what, "__self__", None)
            module = getattr(what, "__module__", None) or type(owner).__module__
            name = getattr(what, "__qualname__", "")
            clock = name.rpartition(".")[2] in CLOCKS and "date" in name
            if module in C_MODULES or clock or isinstance(owner, random.Random):
                found.add(f"{module}.{name}")
        elif event == "call" and frame.f_globals.get("__name__") in MODULES:
            found.add(f"{frame.f_globals['__name__']}.{frame.f_code.co_name}")

    before = sys.getprofile()
    gc.disable()  # hypothesis times each collection, wherever it happens
    sys.setprofile(watch)
    try:
        yield found
    finally:
        sys.setprofile(before)
        gc.enable()


def digest_of(events: list[Event]) -> str:
    """Return SHA-256 over events and the state they fold to."""
    folded = fold(events)
    assert folded is not None
    state = STATE.dump_python(folded, mode="json")
    lines = [[SHORT_NAMES[type(event)], event.model_dump(mode="json")] for event in events]
    return hashlib.sha256(orjson.dumps([lines, state])).hexdigest()


def digests() -> dict[str, str]:
    """Decide and fold every scenario anew; return a digest of each."""
    return {name: digest_of(play.log) for name, play in scenarios().items()}


@pytest.mark.parametrize("path", PURE)
def test_nothing_pure_imports_a_source_of_surprise(path: str) -> None:
    """Clock, randomness, environment, files and sockets are not even within reach."""
    named = {name.partition(".")[0] for name in imports(parse(ROOT / path)) if name.isascii()}
    assert set() == named & SURPRISES


@pytest.mark.parametrize(
    "surprise",
    [
        time.time,  # noqa: TID251 - each of these is what must be noticed
        time.monotonic,
        random.random,  # noqa: TID251
        uuid.uuid4,  # noqa: TID251
        lambda: dt.datetime.now(dt.UTC),  # noqa: TID251
        dt.date.today,
        lambda: os.environ.get("HOME"),  # noqa: TID251
        lambda: os.urandom(1),
        lambda: random.Random(5).random(),
        lambda: open("/dev/null").close(),  # noqa: PTH123
    ],
)
def test_the_watch_notices_a_surprise(surprise: Callable[[], object]) -> None:
    """Else the next test would prove nothing."""
    with watched() as found:
        surprise()
    assert found


def test_deciding_and_folding_read_nothing_from_outside() -> None:
    """Every scenario is played and folded again under watch."""
    before = digests()
    with watched() as found:
        plays = scenarios()
        states = [fold(play.log) for play in plays.values()]
    assert set() == found
    assert [play.state for play in plays.values()] == states
    assert before == {name: digest_of(play.log) for name, play in plays.items()}


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
def test_golden_histories_fold_without_a_look_outside(path: Path) -> None:
    """To the recorded state, twice the same."""
    events, folded = read_history(path)
    with watched() as found:
        states = [fold(events), fold(events)]
    assert set() == found
    assert [folded, folded] == states


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONHASHSEED": "1", "TZ": "Asia/Kathmandu", "LANG": "C"},
        {"PYTHONHASHSEED": "4242", "TZ": "America/St_Johns", "CLAWDBOT_DATA_DIR": "elsewhere"},
    ],
    ids=["one", "other"],
)
def test_other_processes_come_to_the_same_bytes(environment: dict[str, str]) -> None:
    """Whatever their hash seed, time zone and environment."""
    script = "import tests.unit.events.test_determinism as t, json; print(json.dumps(t.digests()))"
    done = subprocess.run(  # noqa: S603 - ourselves
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={"PATH": os.defpath, **environment},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert digests() == orjson.loads(done.stdout)
