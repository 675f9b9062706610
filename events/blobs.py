"""Blobs: bytes too large for a message, addressed by content within a tenant, encrypted at rest."""

import asyncio
import hashlib
import io
from abc import ABC, abstractmethod

from nats.aio.client import Client as Nats
from nats.js.api import ObjectMeta, ObjectMetaOptions
from nats.js.errors import APIError, NotFoundError, ObjectNotFoundError
from typing_extensions import override

from events.jetstream import BUS_ERRORS, STREAM_FULL, read_subject
from events.keys import KeyRing
from events.streams import BLOBS
from schemas.errors import DataLoss, InvalidArgument, NotFound, StoreFull, StoreUnavailable
from schemas.values import BlobRef


BLOB_BYTES_MAX = 64 * 1024 * 1024
CHUNK_BYTES = 256 * 1024


class BlobStore(ABC):
    """Keeps bytes by their SHA-256."""

    @abstractmethod
    async def put(self, tenant: str, data: bytes, media_type: str) -> BlobRef:
        """Keep bytes; the same bytes again cost nothing.

        Raises:
            InvalidArgument: More than BLOB_BYTES_MAX.
            StoreFull: No room.
            StoreUnavailable: The store does not answer.
        """

    @abstractmethod
    async def get(self, tenant: str, sha256: str) -> tuple[bytes, str]:
        """Return bytes and media type, after checking them against their name.

        Raises:
            NotFound: No such blob.
            DataLoss: The bytes are not what the name says.
            StoreUnavailable: The store does not answer.
        """

    @abstractmethod
    async def has(self, tenant: str, sha256: str) -> bool:
        """Tell whether `get` would find a blob, without its bytes.

        Raises:
            StoreUnavailable: The store does not answer.
        """


class MemoryBlobStore(BlobStore):
    """The twin for tests."""

    def __init__(self) -> None:
        self._blobs: dict[tuple[str, str], tuple[bytes, str]] = {}

    @override
    async def put(self, tenant: str, data: bytes, media_type: str) -> BlobRef:
        """Keep bytes."""
        ref = _reference(data, media_type)
        self._blobs[tenant, ref.sha256] = (data, media_type)
        return ref

    @override
    async def get(self, tenant: str, sha256: str) -> tuple[bytes, str]:
        """Return bytes and media type."""
        try:
            return self._blobs[tenant, sha256]
        except KeyError:
            raise NotFound(f"no blob {sha256}") from None

    @override
    async def has(self, tenant: str, sha256: str) -> bool:
        """Tell whether a blob is there."""
        return (tenant, sha256) in self._blobs


class JetStreamBlobStore(BlobStore):
    """Over the JetStream object store; reads by batched direct get, as nats-py's is quadratic."""

    def __init__(self, nc: Nats, keys: KeyRing) -> None:
        self._nc = nc
        self._js = nc.jetstream()
        self._keys = keys

    @override
    async def put(self, tenant: str, data: bytes, media_type: str) -> BlobRef:
        """Keep bytes."""
        ref = _reference(data, media_type)
        name = f"{tenant}/{ref.sha256}"
        try:
            store = await self._js.object_store(BLOBS)
            try:
                await store.get_info(name)
            except ObjectNotFoundError:
                cipher = await self._keys.cipher(tenant)
                stored = await asyncio.to_thread(cipher.encrypt, data)
                meta = ObjectMeta(
                    name=name,
                    headers={"Content-Type": media_type},
                    options=ObjectMetaOptions(max_chunk_size=CHUNK_BYTES),
                )
                await store.put(name, io.BytesIO(stored), meta=meta)
        except APIError as error:
            if error.err_code in STREAM_FULL:
                raise StoreFull("the blob store is full; free space or raise its limit") from error
            raise StoreUnavailable("the blob store refused the blob", cause=str(error)) from error
        except BUS_ERRORS as error:
            raise StoreUnavailable("the blob store does not answer") from error
        return ref

    @override
    async def get(self, tenant: str, sha256: str) -> tuple[bytes, str]:
        """Return bytes and media type."""
        try:
            store = await self._js.object_store(BLOBS)
            info = await store.get_info(f"{tenant}/{sha256}")
            chunks = await read_subject(
                self._nc, f"OBJ_{BLOBS}", f"$O.{BLOBS}.C.{info.nuid}", timeout_s=30.0
            )
        except (ObjectNotFoundError, NotFoundError):
            raise NotFound(f"no blob {sha256}") from None
        except (APIError, *BUS_ERRORS) as error:
            raise StoreUnavailable("the blob store does not answer") from error
        cipher = await self._keys.cipher(tenant)
        stored = b"".join(chunk.data for chunk in chunks)
        try:
            data = await asyncio.to_thread(cipher.decrypt, stored)
        except ValueError as error:
            raise DataLoss(f"blob {sha256} is altered or its key is gone") from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise DataLoss(f"blob {sha256} is altered")
        return data, (info.headers or {}).get("Content-Type", "application/octet-stream")

    @override
    async def has(self, tenant: str, sha256: str) -> bool:
        """Tell whether a blob is there."""
        try:
            store = await self._js.object_store(BLOBS)
            await store.get_info(f"{tenant}/{sha256}")
        except (ObjectNotFoundError, NotFoundError):
            return False
        except (APIError, *BUS_ERRORS) as error:
            raise StoreUnavailable("the blob store does not answer") from error
        return True


def _reference(data: bytes, media_type: str) -> BlobRef:
    if len(data) > BLOB_BYTES_MAX:
        raise InvalidArgument(f"a blob holds at most {BLOB_BYTES_MAX} bytes")
    return BlobRef(
        media_type=media_type, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest()
    )
