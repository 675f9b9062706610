"""The repository's models on a worker: fetched once, checked, made room for, taken away."""

import asyncio
import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

from events.repository import ModelRepository
from schemas import catalogue
from schemas.errors import ModelUnavailable, NotFound
from schemas.live_catalogue import LiveCatalogue
from schemas.pushes import digest_of
from schemas.repository import (
    ModelControl,
    ModelFile,
    ModelRecord,
    ModelVersion,
    Push,
    VersionPolicy,
)
from schemas.values import Tensor
from services.workers.engine import Request
from services.workers.models import Capacity, Models
from services.workers.shelf import Cache, Shelf
from tests.support import onnx_models as tiny


ONES = Tensor(datatype="FP32", shape=(1, 2), data=b"\x00\x00\x80\x3f" * 2)


class MemoryRepository(ModelRepository):
    """Keeps parts and records in memory."""

    def __init__(self) -> None:
        self.parts: dict[str, bytes] = {}
        self.kept: dict[str, ModelRecord] = {}
        self.fetched: Counter[str] = Counter()

    @override
    async def get(self, tenant: str, name: str) -> ModelRecord:
        return self.kept.get(name, ModelRecord(name=name))

    @override
    async def get_part(self, tenant: str, sha256: str) -> bytes:
        self.fetched[sha256] += 1
        await asyncio.sleep(0)
        try:
            return self.parts[sha256]
        except KeyError:
            raise NotFound(f"no blob {sha256}") from None

    def push(self, name: str, factor: float, **update: Any) -> ModelVersion:
        """Keep one more version, a model that multiplies."""
        weight = tiny.helper.make_tensor("f", tiny.TensorProto.FLOAT, [1], [factor])
        node = tiny.helper.make_node("Mul", ["X", "f"], ["Y"])
        ports = {"X": ("FP32", ("n", 2))}
        data = tiny.model([node], ports, {"Y": ports["X"]}, [weight]).SerializeToString()
        sha256 = hashlib.sha256(data).hexdigest()
        self.parts[sha256] = data
        file = ModelFile(path="m.onnx", size_bytes=len(data), sha256=sha256, parts=(sha256,))
        ends = [tiny.port("X", "FP32", [-1, 2])], [tiny.port("Y", "FP32", [-1, 2])]
        spec = tiny.spec({**tiny.entry("m.onnx", *ends), **update})
        record = self.kept.get(name, ModelRecord(name=name))
        version = ModelVersion(
            version=record.next_version,
            digest=digest_of(spec, [file]),
            spec=spec,
            files=(file,),
            pushed_at=0.0,
        )
        self.kept[name] = record.pushed(version, Push(spec=spec, files=(file,)))
        return version


class Bench:
    """A shelf and what it stands on."""

    def __init__(self, folder: Path, bytes_max: int = 10**6) -> None:
        self.live = LiveCatalogue(catalogue.load())
        self.repository = MemoryRepository()
        self.models = Models(
            self.live.base, "text", folder, allow_fallback=True, capacity=Capacity()
        )
        self.cache = Cache(folder / "cache", bytes_max)
        self.shelf = Shelf(self.live, self.repository, self.models, "text", self.cache)

    async def sync(self) -> None:
        """Follow the repository."""
        self.live.merge(self.repository.kept.values())
        await self.shelf.sync()

    async def asked(self, name: str, key: str = "run") -> tuple[str, float]:
        """Return which version answers, and by what it multiplies."""
        concrete = await self.shelf.at_hand(name, key)
        answer = await self.models.infer(concrete, Request({"x": ONES}))
        found = answer.outputs["y"]
        assert isinstance(found, Tensor)
        factor = {b"\x00\x00\x00\x40": 2.0, b"\x00\x00\x40\x40": 3.0}[found.data[:4]]
        return answer.model, factor

    def offered(self) -> dict[str, bool]:
        """Return which versions the card has, and whether they can run."""
        offers = (*self.models.offers(), *self.shelf.offers())
        return {offer.model: offer.available for offer in offers if "@" in offer.model}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A worker for text."""
    return Bench(tmp_path)


async def test_a_pushed_model_is_offered_and_answers(bench: Bench) -> None:
    """Under its version; the catalogue's own models are as they were."""
    version = bench.repository.push("mine", 2.0)
    bench.repository.push("seen", 2.0, modality="vision")
    await bench.sync()
    assert {"mine@1": True} == bench.offered()
    assert ("mine@1", 2.0) == await bench.asked("mine")
    assert ["m.onnx"] == [item.name for item in bench.cache.of(version).iterdir()]
    assert "echo" == await bench.shelf.at_hand("echo", "run")
    bench.models.close()


async def test_a_version_is_fetched_once_for_all_who_ask(bench: Bench) -> None:
    """Also when it was never told of: who asks may have heard of it before."""
    version = bench.repository.push("mine", 3.0)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(bench.asked("mine@1")) for _ in range(5)]
    assert {("mine@1", 3.0)} == {task.result() for task in tasks}
    assert {version.files[0].sha256: 1} == bench.repository.fetched
    bench.models.close()


async def test_a_version_that_is_not_kept_ready_is_fetched_when_asked_for(bench: Bench) -> None:
    """A run that began with it ends with it; new requests get the one in use."""
    for factor in (2.0, 3.0, 2.0, 3.0):
        bench.repository.push("mine", factor, description=str(len(bench.repository.fetched)))
        bench.repository.fetched[str(factor)] += 1
    await bench.sync()
    assert ["mine@3", "mine@4"] == sorted(bench.offered())
    assert ("mine@1", 2.0) == await bench.asked("mine@1")
    assert ("mine@4", 3.0) == await bench.asked("mine")
    bench.models.close()


async def test_what_is_removed_goes(bench: Bench) -> None:
    """From the card and from the disk; asked for, it is not found."""
    version = bench.repository.push("mine", 2.0)
    await bench.sync()
    bench.repository.kept["mine"] = bench.repository.kept["mine"].removed(1)
    await bench.sync()
    assert ({}, False) == (bench.offered(), bench.cache.of(version).exists())
    for name in ("mine", "mine@1"):
        with pytest.raises(NotFound, match="was removed"):
            await bench.shelf.at_hand(name, "run")


async def test_what_is_unloaded_is_not_offered(bench: Bench) -> None:
    """Until it is loaded again, from the files that are here."""
    version = bench.repository.push("mine", 2.0)
    await bench.sync()
    for action, offered in (("unload", {}), ("load", {"mine@1": True})):
        order = ModelControl.model_validate({"action": action})
        bench.repository.kept["mine"] = bench.repository.kept["mine"].obey(order)
        await bench.sync()
        assert offered == bench.offered()
        if action == "unload":
            with pytest.raises(ModelUnavailable, match="is unloaded"):
                await bench.shelf.at_hand("mine@1", "run")
    assert 1 == bench.repository.fetched[version.files[0].sha256]


async def test_what_cannot_be_fetched_says_why(bench: Bench) -> None:
    """On the card, and to who asks; when it is there again, it is offered."""
    version = bench.repository.push("mine", 2.0)
    data = bench.repository.parts.pop(version.files[0].sha256)
    await bench.sync()
    assert {"mine@1": False} == bench.offered()
    with pytest.raises(ModelUnavailable, match="cannot run here: no blob"):
        await bench.shelf.at_hand("mine", "run")
    bench.repository.parts[version.files[0].sha256] = data + b"altered"
    await bench.sync()
    [offer] = bench.shelf.offers()
    assert "its digest differs" in offer.reason
    bench.repository.parts[version.files[0].sha256] = data
    await bench.sync()
    assert {"mine@1": True} == bench.offered()


async def test_files_of_before_are_compared_first(bench: Bench, tmp_path: Path) -> None:
    """Whole ones are used, damaged ones fetched again."""
    version = bench.repository.push("mine", 2.0)
    await bench.sync()
    for damage, fetched in ((False, 1), (True, 2)):
        if damage:
            (bench.cache.of(version) / "m.onnx").write_bytes(b"damaged")
        again = Bench(tmp_path)
        again.repository = bench.repository
        again.shelf = Shelf(again.live, bench.repository, again.models, "text", again.cache)
        await again.sync()
        assert {"mine@1": True} == again.offered()
        assert fetched == bench.repository.fetched[version.files[0].sha256]


async def test_room_is_made_for_what_is_asked_for(tmp_path: Path) -> None:
    """What is kept ready stays; the longest unused of the rest goes; else it is said."""
    size = MemoryRepository().push("probe", 2.0).size_bytes
    bench = Bench(tmp_path, bytes_max=3 * size + size // 2)
    versions = [
        bench.repository.push("mine", 2.0 + number % 2, description=str(number))
        for number in range(5)
    ]
    await bench.sync()
    assert ["mine@4", "mine@5"] == sorted(bench.offered())
    await bench.asked("mine@1")
    await bench.asked("mine@2")
    there = [bench.cache.of(version).exists() for version in versions]
    assert [False, True, False, True, True] == there
    assert ("mine@1", 2.0) == await bench.asked("mine@1")
    whole = VersionPolicy(keep="all")
    order = ModelControl(action="policy", policy=whole)
    bench.repository.kept["mine"] = bench.repository.kept["mine"].obey(order)
    await bench.sync()
    assert {True, False} == set(bench.offered().values())
    assert {"CLAWDBOT_MODEL_CACHE_BYTES_MAX is the limit"} == {
        offer.reason.partition("; ")[2] for offer in bench.shelf.offers()
    }
    bench.models.close()
