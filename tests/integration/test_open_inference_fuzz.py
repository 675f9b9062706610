"""Ten thousand damaged inferences: each is answered, nobody dies, and memory stays where it was."""

import asyncio
import json
import random
from collections import Counter
from pathlib import Path

import pytest

from tests.support.inference import Served


pytestmark = pytest.mark.nats
BODIES = 10_000
CLIENTS = 8
GROWTH_KIB_MAX = 96 * 1024
JSON_BYTES = "Inference-Header-Content-Length"
WORDS = (
    b"FP32",
    b"FP16",
    b"INT64",
    b"BYTES",
    b"-1",
    b"1e999",
    b"[[",
    b"null",
    b"18446744073709551616",
)


def healthy(chance: random.Random) -> tuple[str, bytes, int]:
    """Return model, body and length of its JSON, of a request that works."""
    rows = chance.randint(1, 8)
    if chance.random() < 0.5:
        blob = chance.randbytes(12 * rows)
        params = {"binary_data_size": len(blob)}
        tensor = {"shape": [rows, 3], "datatype": "FP32", "parameters": params}
        document = {"inputs": [{"name": name, **tensor} for name in ("A", "B")]}
        text = json.dumps({**document, "parameters": {"binary_data_output": True}}).encode()
        return "doubling", text + blob + blob, len(text)
    tensor = {"shape": [rows, 2], "datatype": "INT64", "data": list(range(2 * rows))}
    text = json.dumps({"inputs": [{"name": "X", **tensor}]}).encode()
    return "same-int64", text, len(text)


def damaged(chance: random.Random) -> bytes:
    """Return a whole HTTP request with something wrong in it, most of the time."""
    model, body, size = healthy(chance)
    data = bytearray(body)
    for _ in range(chance.randint(0, 3)):
        at = chance.randrange(max(1, len(data)))
        match chance.randrange(5):
            case 0:
                data[at : at + 1] = chance.randbytes(1)
            case 1:
                del data[at : at + chance.randint(1, 40)]
            case 2:
                data[at:at] = chance.choice(WORDS)
            case 3:
                data[at:at] = data[: chance.randint(0, 60)]
            case _:
                size = chance.choice([0, size - 1, size + 1, len(data), chance.randrange(1000)])
    head = (
        f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: localhost\r\n"
        f"{JSON_BYTES}: {max(0, size)}\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + bytes(data)


async def send(address: str, seed: int, statuses: Counter[int]) -> None:
    """Send a share of the bodies over one connection."""
    host, _, port = address.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    chance = random.Random(seed)
    for _ in range(BODIES // CLIENTS):
        writer.write(damaged(chance))
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        size = int(head.partition("\r\ncontent-length: ")[2].partition("\r\n")[0])
        answer = await reader.readexactly(size)
        status = int(head.split()[1])
        statuses[status] += 1
        assert status in {200, 400, 501}, (status, answer)
        assert status == 200 or {"error"} == set(json.loads(answer))
    writer.close()


def resident_kib(pid: int) -> int:
    """Return the memory a process holds. Source: proc(5)."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError("the process is gone")


async def test_ten_thousand_damaged_bodies(served: Served) -> None:
    """Good ones among them are computed still; the same processes serve afterwards."""
    services = served.mesh.services.values()
    before = {service.name: (service.pid, resident_kib(service.pid)) for service in services}
    statuses: Counter[int] = Counter()
    async with asyncio.TaskGroup() as group:
        for seed in range(CLIENTS):
            group.create_task(send(served.address, seed, statuses))
    assert BODIES == statuses.total()
    assert min(statuses[200], statuses[400]) > BODIES // 10, statuses
    for service in services:
        assert service.process is not None
        assert service.process.poll() is None
        pid, kib = before[service.name]
        assert pid == service.pid
        assert resident_kib(pid) - kib < GROWTH_KIB_MAX
