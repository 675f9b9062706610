"""An engine that does what native code does at its worst, when its input says so."""

import ctypes
import os
import signal
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, ClassVar

from typing_extensions import override

from schemas.catalogue import ModelSpec
from schemas.errors import Cancelled, InvalidArgument
from schemas.values import Value
from services.workers.engine import BatchEngine, Request


MIB = 1024 * 1024


class WildEngine(BatchEngine):
    """Output `text` is input `text`, `pid` who computed it, `mates` with how many others."""

    kept: ClassVar[list[bytes]] = []

    @override
    def load(self) -> None:
        self._do(self.spec.description)

    @override
    def batch_key(self, request: Request) -> Hashable | None:
        return "all"

    @override
    def rows(self, request: Request) -> int:
        return 1

    @override
    def infer(self, batch: Sequence[Request]) -> list[Mapping[str, Value]]:
        for request in batch:
            self._do(str(request.inputs.get("text")), request)
        facts = {"pid": os.getpid(), "mates": len(batch)}
        return [{**request.inputs, **facts} for request in batch]

    def _do(self, what: str, request: Request | None = None) -> None:
        word, _, number = what.partition(" ")
        deed = _DEEDS.get(word)
        if deed is not None:
            deed(int(number or 0))
        if word == "parts" and request is not None and request.emit is not None:
            for part in range(int(number)):
                request.emit({"text": str(part)})
        if word == "cooperate":
            assert request is not None
            while not request.is_stopped():
                time.sleep(0.005)
            raise Cancelled("nobody waits")


def _hang(_: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(60)


def _eat(mib: int) -> None:
    WildEngine.kept.append(b"x" * mib * MIB)
    time.sleep(60)


def _leak(mib: int) -> None:
    WildEngine.kept.append(b"x" * mib * MIB)


def _refuse(_: int) -> None:
    raise InvalidArgument("it is refused", field="inputs.text")


def _stumble(_: int) -> None:
    raise RuntimeError("/a/path/that/is/nobodys/business")


_DEEDS: dict[str, Callable[[int], object]] = {
    "segfault": ctypes.string_at,
    "abort": lambda _: os.abort(),
    "exit": os._exit,
    "hang": _hang,
    "eat": _eat,
    "leak": _leak,
    "refuse": _refuse,
    "stumble": _stumble,
}


def entry(**rest: Any) -> dict[str, Any]:
    """Return a catalogue entry of the engine `wild`."""
    port = {"name": "text", "kind": "tensor", "datatype": "BYTES", "shape": [-1]}
    return {
        "modality": "text",
        "engine": "wild",
        "inputs": [port],
        "outputs": [port],
        "isolation": "process",
        "max_batch_size": 8,
        **rest,
    }


def spec(**rest: Any) -> ModelSpec:
    """Return it as it is read."""
    return ModelSpec.model_validate(entry(**rest))
