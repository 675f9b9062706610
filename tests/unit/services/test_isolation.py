"""A model in a process of its own: whatever it does to itself, others are undisturbed."""

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from schemas.catalogue import Catalogue, ModelSpec
from schemas.errors import (
    Cancelled,
    ClawdbotError,
    DeadlineExceeded,
    EngineFailed,
    InvalidArgument,
    ModelUnavailable,
)
from schemas.values import Binary, Tensor, Value
from services.errors import status_of
from services.workers import apart, isolation, loading
from services.workers.engine import Request
from services.workers.engines import engine_of
from services.workers.isolation import Isolated
from services.workers.memory import MIB, held_bytes
from services.workers.models import Capacity, Models
from tests.support import onnx_models as tiny
from tests.support import wild
from tests.support.wait import until_sync


def process(**rest: Any) -> Isolated:
    """Return an engine in a process, loaded."""
    engine = Isolated(wild.WildEngine(wild.spec(**rest), Path()))
    engine.load()
    return engine


@pytest.fixture
def engine() -> Iterator[Isolated]:
    """A model with 3 seconds and 150 MiB."""
    found = process(timeout_s=3.0, limits={"memory": "150MiB"})
    yield found
    found.close()


def say(engine: Isolated, **inputs: Value) -> Any:
    """Return what one request gives."""
    [found] = engine.infer([Request(inputs)])
    return found


def is_alive(pid: int) -> bool:
    """Tell whether there is such a process."""
    return Path(f"/proc/{pid}").exists()


def test_values_of_every_size_cross_unchanged(engine: Isolated) -> None:
    """Small ones in the frame, large ones beside it; also after those that were larger."""
    found: dict[str, Any] = {}
    for size in (0, 5, 20_000, 5 * MIB, 70_000, 9 * MIB):
        data = os.urandom(size)
        tensor = Tensor(datatype="UINT8", shape=(size,), data=data)
        deep = {"a": [1, None, "x", 2.5]}
        found = say(engine, text="hi", t=tensor, b=Binary(media_type="a/b", data=data), j=deep)
        assert (tensor, data, deep) == (found["t"], found["b"].data, found["j"])
        assert os.getpid() != found["pid"]
    assert held_bytes(found["pid"]) > 10 * MIB


def test_errors_are_the_engines_and_the_process_stays(engine: Isolated) -> None:
    """What a library raises is told in words that give nothing away."""
    pid = say(engine, text="hi")["pid"]
    with pytest.raises(InvalidArgument, match="it is refused") as refused:
        say(engine, text="refuse")
    assert "inputs.text" == refused.value.field
    with pytest.raises(EngineFailed, match=r"could not compute this input$"):
        say(engine, text="stumble")
    assert pid == say(engine, text="hi")["pid"]


@pytest.mark.parametrize(
    ("text", "error", "status", "said"),
    [
        ("segfault", EngineFailed, 500, r"crashed while it computed this input \(SIGSEGV\)"),
        ("abort", EngineFailed, 500, "SIGABRT"),
        ("exit 3", EngineFailed, 500, "exit status 3"),
        ("hang", DeadlineExceeded, 504, "did not answer within 3 s"),
        ("eat 400", EngineFailed, 500, "more than its limit of 150 MiB"),
    ],
)
def test_a_lost_process_is_replaced(
    engine: Isolated, text: str, error: type[ClawdbotError], status: int, said: str
) -> None:
    """The request is answered with what happened, the next one by another process."""
    pid = say(engine, text="hi")["pid"]
    with pytest.raises(error, match=said) as lost:
        say(engine, text=text)
    assert status == status_of(lost.value)
    assert not is_alive(pid)
    found = say(engine, text="hi")
    assert (pid, "hi") != (found["pid"], found["text"])


def test_a_process_that_ends_while_idle_is_nobodys_fault(engine: Isolated) -> None:
    """Whoever comes next is served by another one."""
    pid = say(engine, text="hi")["pid"]
    os.kill(pid, signal.SIGKILL)
    until_sync(lambda: Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z")
    assert pid != say(engine, text="hi")["pid"]


def test_no_key_is_in_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings stay in the worker; libraries hear how many threads they may have."""
    monkeypatch.setenv("CLAWDBOT_MASTER_KEY", "secret")
    with closing(process(limits={"threads": 3})) as engine:
        assert engine._process is not None
        found = Path(f"/proc/{engine._process.pid}/environ").read_bytes().split(b"\0")
        assert b"OMP_NUM_THREADS=3" in found
        assert not [item for item in found if item.startswith(b"CLAWDBOT_")]


def test_parts_of_an_answer_come_as_they_are_given(engine: Isolated) -> None:
    """To the request that wants them; the whole comes in any case."""
    found: list[Any] = []
    [whole] = engine.infer([Request({"text": "parts 3"}, emit=found.append)])
    assert [{"text": str(n)} for n in range(3)] == found
    assert "parts 3" == whole["text"]
    assert "parts 3" == say(engine, text="parts 3")["text"]


def test_a_slow_leak_costs_nobody_an_answer(
    engine: Isolated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process is replaced between two requests."""
    monkeypatch.setattr(apart, "LOOK_S", 0.0)
    monkeypatch.setattr(apart, "WATCH_MS", 10_000)  # however slow the machine is
    pids = {say(engine, text="leak 4")["pid"] for _ in range(60)}
    assert 2 <= len(pids) <= 8


def test_one_that_goes_on_and_on_is_held_back(
    engine: Isolated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its requests are answered at once until it may try again; one that works resets that."""
    monkeypatch.setattr(isolation, "CRASHES_FREE", 1)
    for _ in range(2):
        with pytest.raises(EngineFailed):
            say(engine, text="exit 1")
    with pytest.raises(ModelUnavailable, match=r"2 times in a row; it is tried again in \d\.\d s"):
        say(engine, text="hi")
    engine._not_before = 0.0
    assert "hi" == say(engine, text="hi")["text"]
    assert 0 == engine._losses


def test_what_nobody_waits_for_is_told_so_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that asks stops by itself; one that does not loses its process."""
    monkeypatch.setattr(apart, "ABANDONED_S", 20.0)
    with closing(process()) as engine:
        stop = threading.Event()
        timer = threading.Timer(0.05, stop.set)
        timer.start()
        request = Request({"text": "cooperate"}, is_stopped=stop.is_set)
        with pytest.raises(Cancelled, match=r"^nobody waits$"):
            engine.infer([request])
        timer.join()
        pid = say(engine, text="hi")["pid"]
        monkeypatch.setattr(apart, "ABANDONED_S", 0.1)
        with pytest.raises(Cancelled, match="any more"):
            engine.infer([Request({"text": "hang"}, is_stopped=stop.is_set)])
        assert pid != say(engine, text="hi")["pid"]


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        ({"description": "segfault"}, "cannot be loaded: the model's process crashed.*SIGSEGV"),
        ({"description": "refuse"}, "it is refused"),
        (
            {"description": "eat 300", "limits": {"memory": "100MiB"}},
            "cannot be loaded: the model took more than its limit of 100 MiB",
        ),
    ],
)
def test_what_cannot_load_says_why_and_leaves_no_process(rest: dict[str, Any], said: str) -> None:
    """As 503: another worker may have it."""
    engine = Isolated(wild.WildEngine(wild.spec(**rest), Path()))
    with pytest.raises(ModelUnavailable, match=said):
        engine.load()
    assert engine._process is None


def test_a_worker_that_dies_takes_its_processes_along(engine: Isolated) -> None:
    """Even while they compute: they end with the socket, or with the thread that made them."""
    assert engine._process is not None
    pid = engine._process.pid
    engine._process._link.shutdown(2)
    until_sync(lambda: (Path(f"/proc/{pid}/stat").read_text().split()[2]) == "Z")


@pytest.fixture
def mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Models]:
    """A worker with a wild model, and a tame one in the same process as the worker."""
    monkeypatch.setattr(
        loading,
        "engine_of",
        lambda spec, folder: (
            wild.WildEngine(spec, folder) if spec.engine == "wild" else engine_of(spec, folder)
        ),
    )
    entries = tiny.entries(tmp_path)
    documents = {
        "tame": entries["doubling"],
        "apart": {**entries["doubling"], "isolation": "process"},
    }
    catalogue = Catalogue.model_validate({"models": documents})
    models = Models(catalogue, "text", tmp_path, allow_fallback=True, capacity=Capacity(4))
    models._specs["wild"] = wild.spec(timeout_s=3.0)
    yield models
    models.close()


ROW = Tensor(datatype="FP32", shape=(1, 3), data=bytes(12))


async def test_others_go_on_while_one_crashes_again_and_again(mixed: Models) -> None:
    """Batch mates of a poisoned request get their answers, other models never notice."""
    assert "hi" == (await mixed.infer("wild", Request({"text": "hi"}))).outputs["text"]

    async def ask(text: str) -> object:
        try:
            return (await mixed.infer("wild", Request({"text": text}))).outputs["text"]
        except ClawdbotError as error:
            return status_of(error)

    tame = 0
    async with asyncio.TaskGroup() as group:
        texts = ["a", "b", "segfault", "c", "hang", "refuse"]
        asked = [group.create_task(ask(text)) for text in texts]
        while not all(task.done() for task in asked):
            await mixed.infer("tame", Request({"a": ROW, "b": ROW}))
            tame += 1
            await asyncio.sleep(0.005)
    assert ["a", "b", 500, "c", 504, 400] == [task.result() for task in asked]
    assert tame > 50


async def test_apart_gives_what_together_gives(mixed: Models) -> None:
    """Same outputs, same errors, batches too; the card says what it takes."""
    numbers = Tensor(datatype="FP32", shape=(2, 3), data=os.urandom(24))
    for request in (Request({"a": ROW, "b": ROW}), Request({"a": numbers, "b": numbers})):
        together, apart = [(await mixed.infer(name, request)).outputs for name in ("tame", "apart")]
        assert together == apart
    with pytest.raises(InvalidArgument, match="'a' must be a tensor of FP32"):
        await mixed.infer("apart", Request({"a": "text", "b": ROW}))
    loaded = mixed._cache.residents["apart"]
    assert loaded.size_bytes > 10 * MIB > mixed._cache.residents["tame"].size_bytes


def test_who_gets_a_process(tmp_path: Path) -> None:
    """Who asks for one, or has a limit that needs one, or kept its memory when it was unloaded."""
    loader = loading.Loader(tmp_path, {}, lambda *_: pytest.fail("nothing is loaded"))
    onnx = tiny.entries(tmp_path)["doubling"]
    silero = {**wild.entry(engine="silero"), "isolation": "auto"}

    def has(document: dict[str, Any], **rest: Any) -> bool:
        found = loader.engine("m", ModelSpec.model_validate({**document, **rest}))
        return isinstance(found, Isolated)

    assert not has(onnx)
    assert has(onnx, isolation="process")
    assert has(onnx, limits={"memory": "1GiB"})
    assert not has(onnx, limits={"threads": 2})
    assert has(silero, limits={"threads": 2})
    loader._kept.add("m")
    assert has(onnx)
    assert not has(onnx, isolation="none")
    http = loader.engine("m", wild.spec(engine="http"))
    assert "cannot have `isolation: process`" in str(http.missing())


async def test_a_runtime_that_keeps_its_memory_gets_a_process(
    mixed: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Next time it is loaded: then unloading gives everything back."""
    keeping = wild.spec(isolation="auto", description="leak 64")
    mixed.update({"wild": keeping})
    assert os.getpid() == (await mixed.infer("wild", Request({"text": "a"}))).outputs["pid"]
    mixed.update({"wild": keeping})
    async with asyncio.timeout(20):
        while "wild" not in mixed._loader._kept:  # noqa: ASYNC110 - a thread unloads it
            await asyncio.sleep(0.005)
    mixed.update({"wild": keeping})
    assert os.getpid() != (await mixed.infer("wild", Request({"text": "a"}))).outputs["pid"]
    wild.WildEngine.kept.clear()


@pytest.mark.parametrize(
    ("text", "size"), [("512MiB", 512 * MIB), ("1.5GiB", 1536 * MIB), ("4KiB", 4096)]
)
def test_sizes_are_read(text: str, size: int) -> None:
    """With their binary units."""
    limits = wild.spec(limits={"memory": text}).limits
    assert limits is not None
    assert size == limits.memory_bytes
