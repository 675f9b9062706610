"""Answers of before, for models that give the same answer to the same request.

Opt-in twice: the operator gives it room, the catalogue entry says that its answers may be kept.

Source: Triton's response cache, which is asked the same way.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping

import ormsgpack

from schemas.values import Value, from_wire, to_wire
from services.telemetry import RESPONSES
from services.workers.engine import Request


class Responses:
    """Keeps answers, the most recently used ones.

    Args:
        bytes_max: Of all answers together, as they are packed.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._kept: OrderedDict[bytes, bytes] = OrderedDict()
        self._bytes = 0

    def find(self, digest: bytes) -> dict[str, Value] | None:
        """Return the answer to a request, or None."""
        packed = self._kept.get(digest)
        RESPONSES.labels("miss" if packed is None else "hit").inc()
        if packed is None:
            return None
        self._kept.move_to_end(digest)
        return {name: from_wire(item) for name, item in ormsgpack.unpackb(packed).items()}

    def keep(self, digest: bytes, outputs: Mapping[str, Value]) -> None:
        """Keep an answer; what was not used for longest goes for it."""
        packed = ormsgpack.packb({name: to_wire(value) for name, value in outputs.items()})
        if len(packed) > self._bytes_max:
            return
        self._bytes += len(packed) - len(self._kept.pop(digest, b""))
        self._kept[digest] = packed
        while self._bytes > self._bytes_max:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= len(oldest)


def digest(fingerprint: str, request: Request) -> bytes:
    """Return what two requests share that must have the same answer.

    Args:
        fingerprint: Of the model that serves.
        request: Its inputs and parameters.
    """
    inputs = {name: to_wire(value) for name, value in request.inputs.items()}
    document = [fingerprint, inputs, dict(request.params)]
    packed = ormsgpack.packb(document, option=ormsgpack.OPT_SORT_KEYS)
    return hashlib.blake2b(packed, digest_size=32).digest()
