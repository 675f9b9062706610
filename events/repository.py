"""The model repository: an index in a key-value bucket, files as encrypted parts of objects.

Parts are stored first and named by their content; the index, changed by compare and swap, makes
them a version. So whoever dies in between leaves parts that nothing names, which a sweep takes away
after a grace, and never half a version.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import orjson
from nats.aio.client import Client as Nats
from nats.js.errors import APIError, KeyNotFoundError, KeyWrongLastSequenceError
from pydantic import ValidationError

from events.blobs import JetStreamBlobStore, delete_unless_renewed
from events.jetstream import BUS_ERRORS, StoredCommit, read_subject, stored_at
from events.keys import KeyRing
from events.races import RACES_MAX, step_aside
from events.streams import ARTEFACTS, REPOSITORY
from events.subjects import blob_metas, bucket_keys, encode
from schemas.errors import Aborted, InvalidArgument, ResourceExhausted, StoreUnavailable
from schemas.repository import PART_BYTES_MAX, ModelRecord


RECORD_BYTES_MAX = 4 * 1024 * 1024
PART_TYPE = "application/octet-stream"

Change = Callable[[ModelRecord], ModelRecord]
"""Gives the next record; its errors are the caller's."""


@dataclass
class ArtefactSweep:
    """What a sweep of parts did."""

    seen: int = 0
    deleted: list[str] = field(default_factory=list)
    """Names, `<tenant>/<sha256>`."""


class ModelRepository:
    """Keeps models.

    Args:
        nc: The connection.
        keys: Of the tenants: parts are encrypted.
    """

    def __init__(self, nc: Nats, keys: KeyRing) -> None:
        self._nc = nc
        self._js = nc.jetstream()
        self._parts = JetStreamBlobStore(nc, keys, ARTEFACTS)

    async def records(self, tenant: str) -> list[ModelRecord]:
        """Return what the index has of a tenant, emptied records included.

        Raises:
            StoreUnavailable: The bucket does not answer.
        """
        subject = bucket_keys(REPOSITORY, f"{tenant}.*")
        found = await read_subject(self._nc, f"KV_{REPOSITORY}", subject)
        return [record for item in found if (record := read_record(item.data)) is not None]

    async def revision(self) -> int:
        """Return a number that every change, of whichever model, raises.

        Raises:
            StoreUnavailable: The bucket does not answer.
        """
        try:
            return (await self._js.stream_info(f"KV_{REPOSITORY}")).state.last_seq
        except (APIError, *BUS_ERRORS) as error:
            raise StoreUnavailable("the model repository does not answer") from error

    async def get(self, tenant: str, name: str) -> ModelRecord:
        """Return what the index has of a model; an empty record when it has nothing.

        Raises:
            StoreUnavailable: The bucket does not answer.
        """
        return (await self._read(tenant, name))[0]

    async def change(self, tenant: str, name: str, change: Change) -> ModelRecord:
        """Change a model's record, again on top of what others write meanwhile.

        A change that gives back the very record it got is not written.

        Raises:
            Aborted: Too many others change it at the same moment.
            ResourceExhausted: It has become too large.
            StoreUnavailable: The bucket does not answer.
            ClawdbotError: Of `change`.
        """
        for lost in range(RACES_MAX):
            record, revision = await self._read(tenant, name)
            wanted = change(record)
            if wanted is record:
                return record
            body = orjson.dumps(wanted.model_dump(mode="json"))
            if len(body) > RECORD_BYTES_MAX:
                raise ResourceExhausted(
                    f"the index has no room for more of '{name}'; remove old versions first"
                )
            try:
                bucket = await self._js.key_value(REPOSITORY)
                await bucket.update(_key(tenant, name), body, last=revision)
            except KeyWrongLastSequenceError:
                await step_aside(lost)
                continue
            except (APIError, *BUS_ERRORS) as error:
                raise StoreUnavailable("the model repository does not answer") from error
            return wanted
        raise Aborted(f"others are changing the model '{name}' too; try again")

    async def put_part(self, tenant: str, data: bytes) -> str:
        """Keep one part of a file; return its SHA-256.

        Raises:
            InvalidArgument: It is empty or too large.
            StoreFull, StoreUnavailable: The store has no room, or does not answer.
        """
        if not 0 < len(data) <= PART_BYTES_MAX:
            raise InvalidArgument(f"a part holds 1 to {PART_BYTES_MAX} bytes", field="body")
        return (await self._parts.put(tenant, data, PART_TYPE)).sha256

    async def get_part(self, tenant: str, sha256: str) -> bytes:
        """Return one part, checked against its name.

        Raises:
            NotFound: There is none.
            DataLoss: It is altered.
            StoreUnavailable: The store does not answer.
        """
        return (await self._parts.get(tenant, sha256))[0]

    async def renew_part(self, tenant: str, sha256: str) -> bool:
        """Begin the grace of a part anew; tell whether it is there.

        Raises:
            StoreFull, StoreUnavailable: The store has no room, or does not answer.
        """
        return await self._parts.renew(tenant, sha256)

    async def sweep(self, grace_s: float, *, now: float, deletions_max: int) -> ArtefactSweep:
        """Delete parts that no version names and nobody has written for the grace.

        What is old is listed before the index is read, and deleted only if nobody wrote it again
        since: a version that comes in between has renewed its parts.

        Raises:
            StoreUnavailable: A store does not answer.
        """
        done = ArtefactSweep()
        old: dict[str, StoredCommit] = {}
        for item in await read_subject(self._nc, f"OBJ_{ARTEFACTS}", blob_metas(ARTEFACTS)):
            info = orjson.loads(item.data)
            if info.get("deleted"):
                continue
            done.seen += 1
            if now - stored_at(item) > grace_s:
                old[info["name"]] = item
        named, whole = await self._named()
        for name, item in old.items():
            if not whole or len(done.deleted) >= deletions_max:
                break
            if name not in named and await delete_unless_renewed(self._nc, ARTEFACTS, item):
                done.deleted.append(name)
        return done

    async def _named(self) -> tuple[set[str], bool]:
        """Return the names of all parts of versions, and whether every record could be read."""
        named: set[str] = set()
        whole = True
        start = bucket_keys(REPOSITORY, "")
        for item in await read_subject(self._nc, f"KV_{REPOSITORY}", f"{start}>"):
            record = read_record(item.data)
            if record is None:
                whole = False
                continue
            tenant = item.subject.removeprefix(start).partition(".")[0]
            named |= {
                f"{tenant}/{part}"
                for version in record.versions
                for file in version.files
                for part in file.parts
            }
        return named, whole

    async def _read(self, tenant: str, name: str) -> tuple[ModelRecord, int]:
        try:
            bucket = await self._js.key_value(REPOSITORY)
            entry = await bucket.get(_key(tenant, name))
        except KeyNotFoundError:
            return ModelRecord(name=name), 0
        except (APIError, *BUS_ERRORS) as error:
            raise StoreUnavailable("the model repository does not answer") from error
        record = read_record(entry.value or b"")
        if record is None:
            raise StoreUnavailable(f"a newer service wrote the record of the model '{name}'")
        return record, entry.revision or 0


def read_record(body: bytes) -> ModelRecord | None:
    """Return the record in a message; None for one of a service newer than this one."""
    try:
        return ModelRecord.model_validate(orjson.loads(body), strict=False)
    except (orjson.JSONDecodeError, ValidationError):
        return None


def _key(tenant: str, name: str) -> str:
    return f"{tenant}.{encode(name)}"
