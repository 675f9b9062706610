"""What HTTP adds to a run: `POST .../runs?wait=30` beside the same run over NATS."""

import asyncio
import statistics
import time
from typing import Any

import orjson
from nats.aio.client import Client as Nats

from bench.engine import Driver, mesh_driver


ROUNDS = 10
RUNS = 400
GOAL_MS = 1.0


class Connection:
    """One kept-alive HTTP/1.1 connection, without a client library's own cost."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, port: int) -> "Connection":
        """Connect to a gateway on this machine."""
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def post(self, path: str, document: object) -> tuple[int, dict[str, Any]]:
        """Send JSON; return status and answer."""
        body = orjson.dumps(document)
        head = (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        self._writer.write(head.encode() + body)
        lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
        answer = await self._reader.readexactly(int(fields["content-length"]))
        return int(lines[0].split()[1]), orjson.loads(answer)

    def close(self) -> None:
        """Hang up."""
        self._writer.close()


async def _one(connection: Connection) -> float:
    begun = time.perf_counter()
    status, run = await connection.post(
        "/v1/workflows/chain_strong/runs?wait=30", {"inputs": {"text": "hi"}}
    )
    took = time.perf_counter() - begun
    assert (status, run["status"]) == (200, "completed"), run
    return took


async def measure(nc: Nats, port: int) -> list[dict[str, Any]]:
    """Measure both ways turn by turn."""
    bus: Driver = await mesh_driver(nc)
    connection = await Connection.open(port)
    over_http: list[float] = []
    over_nats: list[float] = []
    for _ in range(50):
        await _one(connection)
        await bus.one()
    for _ in range(ROUNDS):
        over_http += [await _one(connection) for _ in range(RUNS // ROUNDS)]
        over_nats += [await bus.one() for _ in range(RUNS // ROUNDS)]
    connection.close()
    http_ms, nats_ms = (statistics.median(times) * 1000 for times in (over_http, over_nats))
    return [
        {
            "scenario": "http_overhead",
            "http_p50_ms": round(http_ms, 2),
            "nats_p50_ms": round(nats_ms, 2),
            "overhead_ms": round(http_ms - nats_ms, 2),
            "goal": f"overhead <= {GOAL_MS} ms",
            "met": http_ms - nats_ms <= GOAL_MS,
        }
    ]
