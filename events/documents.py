"""Small documents that services share: one value each in a bucket, compare and swap."""

from dataclasses import dataclass

from nats.aio.client import Client as Nats
from nats.errors import NoRespondersError
from nats.js.api import RawStreamMsg
from nats.js.errors import APIError, KeyWrongLastSequenceError, NotFoundError

from events.hedge import hedged
from events.jetstream import BUS_ERRORS
from events.streams import HISTORY
from events.subjects import bucket_keys
from schemas.errors import StoreUnavailable


@dataclass(frozen=True)
class SharedDocument:
    """One document.

    Args:
        nc: The connection.
        name: Of the document; a key of the bucket.
        bucket: Where it is.
    """

    nc: Nats
    name: str
    bucket: str = HISTORY

    async def read(self) -> tuple[bytes, int]:
        """Return its bytes and revision; nothing and 0 when it was never written.

        Raises:
            StoreUnavailable: The bucket does not answer.
        """
        try:
            try:
                found = await hedged(self._last)
            except NoRespondersError:  # no replica of it, or no such bucket: then this is NotFound
                await self.nc.jetstream().stream_info(f"KV_{self.bucket}")
                raise
        except NotFoundError:
            return b"", 0
        except (APIError, *BUS_ERRORS) as error:
            raise StoreUnavailable(f"the bucket {self.bucket} does not answer") from error
        return found.data or b"", found.seq or 0

    async def _last(self) -> RawStreamMsg:
        """Ask any replica: `KeyValue` of nats-py would ask the leader what bucket it is first."""
        js, subject = self.nc.jetstream(), bucket_keys(self.bucket, self.name)
        return await js.get_last_msg(f"KV_{self.bucket}", subject, direct=True)

    async def replace(self, data: bytes, revision: int) -> bool:
        """Write it, unless somebody wrote it since `revision`; tell whether it was written.

        Raises:
            StoreUnavailable: The bucket does not answer; it may be written all the same.
        """
        try:
            bucket = await self.nc.jetstream().key_value(self.bucket)
            await bucket.update(self.name, data, last=revision)
        except KeyWrongLastSequenceError:
            return False
        except (APIError, *BUS_ERRORS) as error:
            raise StoreUnavailable(f"the bucket {self.bucket} does not answer") from error
        return True
