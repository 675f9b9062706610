"""A service that is told to stop stops, even when a cancellation got lost."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[2]
DEAF = """
import asyncio
from services.process import run

async def deaf():
    print("ready", flush=True)
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        print("lost", flush=True)
    await asyncio.sleep(60)

async def main():
    async with asyncio.TaskGroup() as group:
        group.create_task(deaf())

run(main)
"""


@pytest.mark.timeout(30)
def test_a_lost_cancellation_is_repeated() -> None:
    """SIGTERM ends a service whose task went on after it was cancelled."""
    command = [sys.executable, "-c", DEAF]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:  # noqa: S603 - ours
        assert process.stdout is not None
        assert b"ready\n" == process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert b"lost\n" == process.stdout.readline()
        assert 0 == process.wait(15)
