"""Blobs: bytes too large for a message, addressed by content within a tenant, encrypted at rest."""

import asyncio
import contextlib
import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Iterator

import orjson
from nats.aio.client import Client as Nats
from nats.js.api import ObjectMeta, ObjectMetaOptions, RawStreamMsg
from nats.js.errors import APIError, NotFoundError, ObjectNotFoundError
from typing_extensions import override

from events.jetstream import (
    BUS_ERRORS,
    STREAM_FULL,
    WRONG_LAST_SEQUENCE,
    StoredCommit,
    read_subject,
)
from events.keys import KeyRing
from events.streams import BLOBS
from events.subjects import blob_chunks, blob_meta
from schemas.errors import DataLoss, InvalidArgument, NotFound, StoreFull, StoreUnavailable
from schemas.messages import Header
from schemas.values import BlobRef


BLOB_BYTES_MAX = 64 * 1024 * 1024
CHUNK_BYTES = 256 * 1024
RENEWALS_MAX = 8


class BlobStore(ABC):
    """Keeps bytes by their SHA-256."""

    @abstractmethod
    async def put(self, tenant: str, data: bytes, media_type: str) -> BlobRef:
        """Keep bytes; the same bytes again only begin their grace period anew.

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
    async def renew(self, tenant: str, sha256: str) -> bool:
        """Begin a blob's grace period anew, so that a run may cite it; tell whether it is there.

        Raises:
            StoreFull: No room.
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
    async def renew(self, tenant: str, sha256: str) -> bool:
        """Tell whether a blob is there."""
        return (tenant, sha256) in self._blobs


class JetStreamBlobStore(BlobStore):
    """Over the JetStream object store; reads by batched direct get, as nats-py's is quadratic.

    Args:
        nc: The connection.
        keys: Of the tenants.
        bucket: The object store.
    """

    def __init__(self, nc: Nats, keys: KeyRing, bucket: str = BLOBS) -> None:
        self._nc = nc
        self._js = nc.jetstream()
        self._keys = keys
        self._bucket = bucket

    @override
    async def put(self, tenant: str, data: bytes, media_type: str) -> BlobRef:
        """Keep bytes."""
        ref = _reference(data, media_type)
        if await self.renew(tenant, ref.sha256):
            return ref
        name = _name(tenant, ref.sha256)
        cipher = await self._keys.cipher(tenant)
        stored = await asyncio.to_thread(cipher.encrypt, data)
        meta = ObjectMeta(
            name=name,
            headers={"Content-Type": media_type},
            options=ObjectMetaOptions(max_chunk_size=CHUNK_BYTES),
        )
        with _translated():
            store = await self._js.object_store(self._bucket)
            await store.put(name, io.BytesIO(stored), meta=meta)
        return ref

    @override
    async def get(self, tenant: str, sha256: str) -> tuple[bytes, str]:
        """Return bytes and media type."""
        try:
            store = await self._js.object_store(self._bucket)
            info = await store.get_info(_name(tenant, sha256))
            chunks = await read_subject(
                self._nc,
                f"OBJ_{self._bucket}",
                blob_chunks(self._bucket, info.nuid),
                timeout_s=30.0,
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
    async def renew(self, tenant: str, sha256: str) -> bool:
        """Write what is known of a blob again: retention goes by when that was."""
        subject = blob_meta(self._bucket, _name(tenant, sha256))
        for _ in range(RENEWALS_MAX):
            with _translated():
                try:
                    last = await self._js.get_last_msg(f"OBJ_{self._bucket}", subject)
                except NotFoundError:
                    return False
                if orjson.loads(last.data or b"{}").get("deleted"):
                    return False
                if await self._rewrite(subject, last):
                    return True
        return True  # so many others have just done the same

    async def _rewrite(self, subject: str, last: RawStreamMsg) -> bool:
        """Write a message again unless somebody wrote or deleted it since; tell whether we did."""
        headers = {Header.EXPECTED: str(last.seq), "Nats-Rollup": "sub"}
        try:
            await self._js.publish(subject, last.data or b"", headers=headers)
        except APIError as error:
            if error.err_code == WRONG_LAST_SEQUENCE:
                return False
            raise
        return True


async def delete_unless_renewed(nc: Nats, bucket: str, item: StoredCommit) -> bool:
    """Delete a blob unless it was written again since; tell whether it is deleted.

    Args:
        nc: The connection.
        bucket: The object store.
        item: What the store knows of it, as it was read.

    Raises:
        StoreUnavailable: The store does not answer, or refused.
    """
    info = orjson.loads(item.data)
    gone = orjson.dumps({**info, "deleted": True, "size": 0, "chunks": 0, "digest": ""})
    headers = {Header.EXPECTED: str(item.sequence), "Nats-Rollup": "sub"}
    js = nc.jetstream()
    try:
        await js.publish(item.subject, gone, headers=headers)
        await js.purge_stream(f"OBJ_{bucket}", subject=blob_chunks(bucket, info["nuid"]))
    except APIError as error:
        if error.err_code == WRONG_LAST_SEQUENCE:
            return False
        raise StoreUnavailable("the blob store refused a deletion", cause=str(error)) from error
    except BUS_ERRORS as error:
        raise StoreUnavailable("the blob store does not answer") from error
    return True


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Turn the client's errors into ours."""
    try:
        yield
    except APIError as error:
        if error.err_code in STREAM_FULL:
            raise StoreFull("the blob store is full; free space or raise its limit") from error
        raise StoreUnavailable("the blob store refused the request", cause=str(error)) from error
    except BUS_ERRORS as error:
        raise StoreUnavailable("the blob store does not answer") from error


def _name(tenant: str, sha256: str) -> str:
    return f"{tenant}/{sha256}"


def _reference(data: bytes, media_type: str) -> BlobRef:
    if len(data) > BLOB_BYTES_MAX:
        raise InvalidArgument(f"a blob holds at most {BLOB_BYTES_MAX} bytes")
    return BlobRef(
        media_type=media_type, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest()
    )
