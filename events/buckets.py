"""Reading a whole key-value bucket.

nats-py's `watch`, and `keys` which stands on it, may end before they begin: when every message was
sent and none has been taken in yet, they take the bucket for an empty one.
"""

import asyncio

from nats.js import JetStreamContext
from nats.js.errors import APIError, KeyDeletedError, KeyNotFoundError

from events.jetstream import BUS_ERRORS
from events.subjects import bucket_keys
from schemas.errors import StoreUnavailable


CONCURRENT_MAX = 32


async def entries(js: JetStreamContext, name: str, pattern: str = ">") -> dict[str, bytes]:
    """Return the newest value of every key of a bucket that matches a pattern.

    Raises:
        StoreUnavailable: The bucket does not answer.
    """
    found: dict[str, bytes] = {}
    gate = asyncio.Semaphore(CONCURRENT_MAX)
    try:
        bucket = await js.key_value(name)
        info = await js.stream_info(f"KV_{name}", bucket_keys(name, pattern))

        async def read(key: str) -> None:
            async with gate:
                try:
                    found[key] = (await bucket.get(key)).value or b""
                except (KeyNotFoundError, KeyDeletedError):
                    return  # it went meanwhile

        async with asyncio.TaskGroup() as group:
            for subject in info.state.subjects or {}:
                group.create_task(read(subject.removeprefix(bucket_keys(name, ""))))
    except* (APIError, *BUS_ERRORS) as errors:
        raise StoreUnavailable(f"the bucket {name} does not answer") from errors
    return found
