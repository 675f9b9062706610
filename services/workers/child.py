"""The process of one isolated model: `python -m services.workers.child SOCKET REQUESTS ANSWERS`.

Its worker starts it with three open files: a socket for frames, the memory file it reads and the
one it writes. It loads its model, computes what it is asked, and ends when the worker does.
"""

import ctypes
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any

import ormsgpack

from schemas.catalogue import ModelSpec
from schemas.errors import ClawdbotError, EngineFailed
from schemas.values import Value
from services.workers import devices, frames
from services.workers.engine import Engine, Request
from services.workers.frames import Region


_PR_SET_PDEATHSIG = 1
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 32 * 1024 * 1024


class Gone(Exception):
    """The worker has ended."""


class Child:
    """Answers frames, one after the other.

    Args:
        link: Frames in and out.
        requests: The memory that the worker writes.
        answers: The memory that this process writes.
    """

    def __init__(self, link: socket.socket, requests: Region, answers: Region) -> None:
        self._link = link
        self._requests = requests
        self._answers = answers
        self._engine: Engine | None = None
        self._sending = Lock()

    def serve(self) -> None:
        """Answer until the worker is gone."""
        while True:
            size = frames.length(self._read(4))
            asked = ormsgpack.unpackb(self._read(size))
            self._send(self._answer(asked))

    def _answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        self._answers.rewind()
        what = "could not load the model" if "load" in asked else "could not compute this input"
        try:
            if "load" in asked:
                return self._load(asked["load"])
            return self._infer(asked["infer"])
        except ClawdbotError as error:
            return {"error": frames.pack_error(error)}
        except MemoryError:
            failed = EngineFailed(f"the engine {what}: there is not enough memory")
        except Exception:  # noqa: BLE001 - no error may end the process; the worker tells the caller
            traceback.print_exc()
            failed = EngineFailed(f"the engine {what}")
        return {"error": frames.pack_error(failed)}

    def _load(self, wanted: dict[str, Any]) -> dict[str, Any]:
        spec = ModelSpec.model_validate_json(wanted["spec"])
        kind = getattr(import_module(wanted["module"]), wanted["class"])
        engine = kind(spec, Path(wanted["models_dir"]))
        assert isinstance(engine, Engine), "the worker asked for no other"
        gpu = engine.gpu()
        before = 0 if gpu is None else devices.level()
        engine.load()
        self._engine = engine
        taken = 0 if gpu is None else devices.level() - before
        facts = {"devices": list(engine.devices()), "on_gpu": gpu is not None}
        return {"memory": engine.memory(), "device_bytes": max(0, taken), **facts}

    def _infer(self, wanted: Sequence[dict[str, Any]]) -> dict[str, Any]:
        assert self._engine is not None, "the worker loads first"
        batch = [
            Request(
                frames.unpack_values(item["inputs"], self._requests),
                item["params"],
                item["key"],
                lambda: self._requests.flag,
                emit=partial(self._emit, index) if item["emit"] else None,
            )
            for index, item in enumerate(wanted)
        ]
        outputs = self._engine.infer(batch)
        return {"outputs": [frames.pack_values(found, self._answers) for found in outputs]}

    def _emit(self, index: int, values: Mapping[str, Value]) -> None:
        """Send a part of an answer, from whatever thread."""
        self._send({"part": [index, frames.pack_values(values, None)]})

    def _send(self, document: dict[str, Any]) -> None:
        with self._sending:
            self._link.sendall(frames.pack(document))

    def _read(self, size: int) -> bytes:
        parts: list[bytes] = []
        while size:
            part = self._link.recv(size)
            if not part:
                raise Gone
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


def settle() -> None:
    """Make this process one that ends alone, and first."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with suppress(AttributeError):  # glibc: keep what is freed, for the next tensor of that size
        libc.mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, 8 * _KEPT_BYTES)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the worker says when
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):  # who takes all memory goes before anybody else
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def main() -> None:
    """Serve one worker."""
    link, requests, answers = (int(text) for text in sys.argv[1:4])
    settle()
    child = Child(socket.socket(fileno=link), Region(requests), Region(answers))
    with suppress(Gone, ConnectionError):
        child.serve()


if __name__ == "__main__":
    main()
