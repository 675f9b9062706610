"""Tensors in system shared memory, with the module that Triton's users have."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException, shared_memory

from tests.support.inference import Served


pytestmark = pytest.mark.nats
FOLDER = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory is


@pytest.fixture(params=[triton, triton_grpc], ids=["http", "grpc"])
def kind(request: pytest.FixtureRequest) -> Any:
    """Return one of Triton's clients."""
    return request.param


@pytest.fixture
def client(served: Served, kind: Any) -> Iterator[Any]:
    """Return a client that leaves no region behind."""
    client = kind.InferenceServerClient(served.address if kind is triton else served.grpc)
    yield client
    client.unregister_system_shared_memory()
    client.close()


@pytest.fixture
def region() -> Iterator[Any]:
    """Return 64 bytes of shared memory."""
    handle = shared_memory.create_shared_memory_region("r", "clawdbot-test-r", 64)
    yield handle
    shared_memory.destroy_shared_memory_region(handle)


def test_in_and_out(client: Any, kind: Any, region: Any) -> None:
    """Two inputs from one region, an output into another part of it, another one in the answer."""
    a, b = np.arange(3, dtype=np.float32), np.ones(3, np.float32)
    shared_memory.set_shared_memory_region(region, [a, b])
    client.register_system_shared_memory("r", "clawdbot-test-r", 64)
    inputs = [kind.InferInput(name, [1, 3], "FP32") for name in ("A", "B")]
    inputs[0].set_shared_memory("r", 12)
    inputs[1].set_shared_memory("r", 12, offset=12)
    outputs = [kind.InferRequestedOutput(name) for name in ("SUM", "TWICE")]
    outputs[0].set_shared_memory("r", 12, offset=24)
    answer = client.infer("doubling", inputs, outputs=outputs)
    found = shared_memory.get_contents_as_numpy(region, np.float32, [1, 3], offset=24)
    assert np.array_equal([a + b], found)
    assert np.array_equal([2 * a], answer.as_numpy("TWICE"))
    if kind is triton:
        assert {"name", "datatype", "shape"} == set(answer.get_output("SUM"))
    else:
        params = answer.get_output("SUM").parameters
        assert ("r", 24, 12) == (
            params["shared_memory_region"].string_param,
            params["shared_memory_offset"].int64_param,
            params["shared_memory_byte_size"].int64_param,
        )


def test_mixed_with_what_is_sent(client: Any, kind: Any, region: Any) -> None:
    """One input from the region, the other one in the request."""
    shared_memory.set_shared_memory_region(region, [np.ones(3, np.float32)])
    client.register_system_shared_memory("r", "/clawdbot-test-r", 32, offset=0)
    inputs = [kind.InferInput(name, [1, 3], "FP32") for name in ("A", "B")]
    inputs[0].set_shared_memory("r", 12)
    inputs[1].set_data_from_numpy(np.full((1, 3), 2, np.float32))
    answer = client.infer("doubling", inputs)
    assert [[3, 3, 3]] == answer.as_numpy("SUM").tolist()


def status(client: Any, kind: Any, name: str = "") -> dict[str, tuple[str, int, int]]:
    """Return key, offset and size of each region, by name."""
    found = client.get_system_shared_memory_status(name)
    if kind is triton:
        return {item["name"]: (item["key"], item["offset"], item["byte_size"]) for item in found}
    return {name: (item.key, item.offset, item.byte_size) for name, item in found.regions.items()}


def test_what_is_registered(client: Any, kind: Any, region: Any) -> None:
    """Status of one and of all; a name is taken until it is unregistered."""
    client.register_system_shared_memory("a", "clawdbot-test-r", 16)
    client.register_system_shared_memory("b", "clawdbot-test-r", 16, offset=16)
    both = {"a": ("clawdbot-test-r", 0, 16), "b": ("clawdbot-test-r", 16, 16)}
    assert both == status(client, kind)
    assert {"b": both["b"]} == status(client, kind, "b")
    with pytest.raises(InferenceServerException, match="'a' is registered already"):
        client.register_system_shared_memory("a", "clawdbot-test-r", 16)
    client.unregister_system_shared_memory("a")
    client.unregister_system_shared_memory("a")
    assert ["b"] == list(status(client, kind))
    with pytest.raises(InferenceServerException, match="no shared memory region 'a'"):
        status(client, kind, "a")
    client.unregister_system_shared_memory()
    assert {} == status(client, kind)


@pytest.mark.parametrize(
    ("key", "size", "says"),
    [
        ("clawdbot-test-absent", 8, "no shared memory object"),
        ("somebody-elses", 8, "keys begin with 'clawdbot-test-'"),
        ("clawdbot-test-r/../x", 8, "letters, digits"),
        ("../etc/passwd", 8, "letters, digits"),
        ("..", 8, "letters, digits"),
        ("", 8, "letters, digits"),
        ("clawdbot-test-\0", 8, "letters, digits"),
        ("clawdbot-test-link", 8, "cannot be opened"),
        ("clawdbot-test-folder", 8, "cannot be opened"),
        ("clawdbot-test-pipe", 8, "no shared memory object"),
        ("clawdbot-test-r", 4096 * 1024, "are needed"),
        ("clawdbot-test-r", 2**40, "at most"),
        ("clawdbot-test-r", 0, "byte_size"),
    ],
)
def test_keys_that_are_refused(
    client: Any, kind: Any, region: Any, key: str, size: int, says: str
) -> None:
    """No path, link, folder, pipe, foreign object, and nothing past an object's end."""
    strange = [FOLDER / f"clawdbot-test-{name}" for name in ("link", "folder", "pipe")]
    strange[0].symlink_to("/etc/passwd")
    strange[1].mkdir()
    os.mkfifo(strange[2])
    try:
        with pytest.raises(InferenceServerException, match=says):
            client.register_system_shared_memory("r", key, size)
    finally:
        strange[0].unlink()
        strange[1].rmdir()
        strange[2].unlink()


def test_places_that_are_refused(client: Any, kind: Any, region: Any) -> None:
    """Past a region's end, too small for the shape or the output, and made smaller meanwhile."""
    client.register_system_shared_memory("r", "clawdbot-test-r", 16)

    def ask(size: int, offset: int = 0, out: int = 8) -> None:
        tensor = kind.InferInput("X", [1, 2], "FP32")
        tensor.set_shared_memory("r", size, offset)
        output = kind.InferRequestedOutput("Y")
        output.set_shared_memory("r", out, 8)
        client.infer("same-fp32", [tensor], outputs=[output])

    ask(8)
    for wrong, says in (
        ((8, 12), "input 'X': 8 bytes at 12 reach past the region 'r' of 16"),
        ((2**40,), "reach past"),
        ((4,), "needs 8 bytes, the tensor has 4"),
        ((8, 0, 4), "output 'Y': the output has 8 bytes"),
    ):
        with pytest.raises(InferenceServerException, match=says):
            ask(*wrong)
    os.truncate(FOLDER / "clawdbot-test-r", 4)
    with pytest.raises(InferenceServerException, match="became smaller"):
        ask(8)
    os.truncate(FOLDER / "clawdbot-test-r", 64)
    ask(8)


def test_gpu_memory_is_not_there(client: Any, kind: Any) -> None:
    """There are no regions of it, and there is nothing to forget; perf_analyzer asks."""
    client.unregister_cuda_shared_memory()
    found = client.get_cuda_shared_memory_status()
    assert not (found if kind is triton else found.regions)
