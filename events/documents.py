"""Small documents that services share: one value each in a bucket, compare and swap."""

from dataclasses import dataclass

from nats.aio.client import Client as Nats
from nats.js.errors import APIError, KeyNotFoundError, KeyWrongLastSequenceError, NotFoundError

from events.jetstream import BUS_ERRORS
from events.streams import HISTORY
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
            bucket = await self.nc.jetstream().key_value(self.bucket)
            entry = await bucket.get(self.name)
        except (KeyNotFoundError, NotFoundError):
            return b"", 0
        except (APIError, *BUS_ERRORS) as error:
            raise StoreUnavailable(f"the bucket {self.bucket} does not answer") from error
        return entry.value or b"", entry.revision or 0

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
