"""Damaged inferences over both protocols: each is answered, nobody dies, memory stays where it was.

Five hundred of each protocol in every run, ten thousand where slow tests are wanted.
"""

import asyncio
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2

from tests.support.inference import Served


pytestmark = pytest.mark.nats
BODIES = [500, pytest.param(10_000, marks=pytest.mark.slow)]
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


async def send_http(served: Served, seed: int, count: int, answers: Counter[str]) -> None:
    """Send a share of the bodies over one connection."""
    host, _, port = served.address.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    chance = random.Random(seed)
    for _ in range(count):
        writer.write(damaged(chance))
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        size = int(head.partition("\r\ncontent-length: ")[2].partition("\r\n")[0])
        answer = await reader.readexactly(size)
        status = head.split()[1]
        answers[status] += 1
        assert status in {"200", "400", "404"}, (status, answer)
        assert status == "200" or {"error"} == set(json.loads(answer))
    writer.close()


def damaged_message(chance: random.Random) -> bytes:
    """Return the bytes of a request over gRPC with something wrong in them, most of the time."""
    made = service_pb2.ModelInferRequest(model_name="doubling", id="x" * chance.randint(0, 9))
    rows = chance.randint(1, 8)
    for name in ("A", "B"):
        tensor = made.inputs.add(name=name, datatype="FP32", shape=[rows, 3])
        if chance.random() < 0.5:
            made.raw_input_contents.append(chance.randbytes(12 * rows))
        else:
            tensor.contents.fp32_contents.extend(chance.random() for _ in range(3 * rows))
    if chance.random() < 0.3:
        made.parameters["priority"].int64_param = chance.choice([0, 1, 3, -1])
    if chance.random() < 0.3:
        made.outputs.add(name=chance.choice(["SUM", "TWICE", "SUN"]))
    return spoiled(made.SerializeToString(), chance)


def spoiled(good: bytes, chance: random.Random) -> bytes:
    """Return bytes with up to two things wrong in them."""
    data = bytearray(good)
    for _ in range(chance.randint(0, 2)):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(4):
            case 0:
                data[at : at + 1] = chance.randbytes(1)
            case 1:
                del data[at : at + chance.randint(1, 20)]
            case 2:
                data[at:at] = chance.choice(WORDS)
            case _:
                data[at:at] = data[: chance.randint(0, 40)]
    return bytes(data)


async def send_grpc(served: Served, seed: int, count: int, answers: Counter[str]) -> None:
    """Send a share of the messages over one channel."""
    chance = random.Random(seed)
    async with grpc.aio.insecure_channel(served.grpc) as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for _ in range(count):
            try:
                await infer(damaged_message(chance))
                code = "OK"
            except grpc.aio.AioRpcError as error:
                code = error.code().name if error.details() else "no words"
            answers[code] += 1
            assert code in {"OK", "INVALID_ARGUMENT", "NOT_FOUND"}, code


def resident_kib(pid: int) -> int:
    """Return the memory a process holds. Source: proc(5)."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError("the process is gone")


@pytest.mark.parametrize("bodies", BODIES)
@pytest.mark.parametrize("send", [send_http, send_grpc], ids=["http", "grpc"])
async def test_damaged_bodies(served: Served, send: Any, bodies: int) -> None:
    """Good ones among them are computed still; the same processes serve afterwards."""
    services = served.mesh.services.values()
    before = {service.name: (service.pid, resident_kib(service.pid)) for service in services}
    answers: Counter[str] = Counter()
    async with asyncio.TaskGroup() as group:
        for seed in range(CLIENTS):
            share = bodies // CLIENTS + (seed < bodies % CLIENTS)
            group.create_task(send(served, seed, share, answers))
    assert bodies == answers.total()
    good, bad = answers["200"] + answers["OK"], answers["400"] + answers["INVALID_ARGUMENT"]
    assert min(good, bad) > bodies // 10, answers
    for service in services:
        assert service.process is not None
        assert service.process.poll() is None
        pid, kib = before[service.name]
        assert pid == service.pid
        assert resident_kib(pid) - kib < GROWTH_KIB_MAX
