"""Results that later attempts may take instead of computing them again.

Kept under the digest of model, parameters and inputs, encrypted with the tenant's key. Everything
here may be lost at any time: what is not found is computed.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import ormsgpack
from cryptography.exceptions import InvalidTag
from nats.aio.client import Client as Nats
from nats.js.errors import APIError, NotFoundError
from typing_extensions import override

from events.jetstream import APPEND_TIMEOUT_S, BUS_ERRORS
from events.keys import KeyRing
from events.streams import MEMOS
from events.subjects import memo
from schemas.errors import InvalidArgument, StoreUnavailable
from schemas.message import Message
from schemas.messages import pack, unpack
from schemas.values import Wire


class Memo(Message):
    """A result, and where it comes from."""

    outputs: Wire
    model: str
    """The model that really ran."""
    run_id: str
    node_id: str
    at: float
    """When it was computed, seconds since the epoch."""

    @property
    def source(self) -> str:
        """Run and node whose result it is."""
        return f"{self.run_id}/{self.node_id}"


def memo_digest(model: str, params: Mapping[str, Any], inputs: Wire) -> str:
    """Return what a result is kept under.

    Args:
        model: Digest of the model.
        params: The engine's parameters.
        inputs: In wire form, where large values are digests of their bytes.
    """
    document = {"model": model, "params": params, "inputs": inputs}
    body = ormsgpack.packb(document, option=ormsgpack.OPT_SORT_KEYS)
    return hashlib.sha256(body).hexdigest()


class MemoStore(ABC):
    """Keeps the newest result under each digest."""

    @abstractmethod
    async def put(self, tenant: str, digest: str, result: Memo) -> None:
        """Keep a result.

        Raises:
            StoreUnavailable: The store does not take it.
        """

    @abstractmethod
    async def get(self, tenant: str, digest: str) -> Memo | None:
        """Return a result, if there is one.

        Raises:
            StoreUnavailable: The store does not answer.
        """


class MemoryMemoStore(MemoStore):
    """The twin for tests."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str], Memo] = {}

    @override
    async def put(self, tenant: str, digest: str, result: Memo) -> None:
        self._kept[tenant, digest] = result

    @override
    async def get(self, tenant: str, digest: str) -> Memo | None:
        return self._kept.get((tenant, digest))


class JetStreamMemoStore(MemoStore):
    """Over the MEMOS stream, which keeps one message for each digest and forgets the oldest."""

    def __init__(self, nc: Nats, keys: KeyRing) -> None:
        self._js = nc.jetstream(timeout=APPEND_TIMEOUT_S)
        self._keys = keys

    @override
    async def put(self, tenant: str, digest: str, result: Memo) -> None:
        cipher = await self._keys.cipher(tenant)
        try:
            await self._js.publish(memo(tenant, digest), cipher.encrypt(pack(result)))
        except (APIError, *BUS_ERRORS) as error:
            raise StoreUnavailable("the memos do not take a result") from error

    @override
    async def get(self, tenant: str, digest: str) -> Memo | None:
        try:
            found = await self._js.get_last_msg(MEMOS, memo(tenant, digest), direct=True)
        except NotFoundError:
            return None
        except (APIError, *BUS_ERRORS) as error:
            raise StoreUnavailable("the memos do not answer") from error
        cipher = await self._keys.cipher(tenant)
        try:
            return unpack(Memo, cipher.decrypt(found.data or b""))
        except (InvalidTag, ValueError, InvalidArgument):
            return None  # of another key or another version: computed again, and replaced
