"""Run the scenarios: `python -m bench [SCENARIO ...]`, all by default.

One JSON line each on stdout as it is measured, and a table on stderr at the end.
"""

import argparse
import base64
import json
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import nats
import uvloop

from bench import engine, http, iterations, memory, projections, replay
from tests.support.mesh import Mesh
from tests.support.nats import NatsServer


SCENARIOS = ("memory", "http", "engine", "replay", "projections", "iterations")
MASTER_KEY = bytes(32)


async def _measure(chosen: set[str], mesh: Mesh, url: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []

    def add(fresh: list[dict[str, Any]]) -> None:
        rows.extend(fresh)
        for row in fresh:
            print(json.dumps(row), flush=True)

    nc = await nats.connect(url)
    scenarios: dict[str, Callable[[], Awaitable[list[dict[str, Any]]]]] = {
        "memory": lambda: memory.measure(mesh),
        "http": lambda: http.measure(nc, mesh.services["gateway"].fact("listening", "port")),
        "engine": lambda: engine.measure(nc, url, MASTER_KEY),
        "replay": lambda: replay.measure(nc, MASTER_KEY),
        "projections": lambda: projections.measure(nc, MASTER_KEY),
        "iterations": lambda: iterations.measure(nc, mesh, MASTER_KEY),
    }
    try:
        for name in SCENARIOS:
            if name in chosen:
                add(await scenarios[name]())
    finally:
        await nc.close()
    return rows


def _table(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        facts = ", ".join(
            f"{name} {value}"
            for name, value in row.items()
            if name not in {"scenario", "goal", "met"}
        )
        verdict = "met   " if row["met"] else "MISSED"
        lines.append(f"{verdict} {row['scenario']:<26} {row['goal']:<20} {facts}")
    return "\n".join(lines)


def main() -> None:
    """Start a mesh of its own, measure, stop it."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("scenarios", nargs="*", choices=[*SCENARIOS, []], metavar="scenario")
    chosen = set(parser.parse_args().scenarios) or set(SCENARIOS)
    key = base64.b64encode(MASTER_KEY).decode()
    with tempfile.TemporaryDirectory() as folder, NatsServer(Path(folder)) as server:
        mesh = Mesh(Path(folder) / "mesh", server.url, {"master_key": key})
        mesh.add_core(modalities=("text", "audio", "vision") if "memory" in chosen else ("text",))
        if chosen & {"http", "memory"}:
            mesh.add("gateway", "services.gateway", http_port="0")
        try:
            mesh.start()
            rows = uvloop.run(_measure(chosen, mesh, server.url))
        finally:
            mesh.stop()
    print(_table(rows), file=sys.stderr)


if __name__ == "__main__":
    main()
