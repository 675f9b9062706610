"""Reading a run again only to see that it is whole; needs no key."""

from events.chain import check_link
from events.jetstream import JetStreamEventStore
from events.store import EMPTY, EventStore, Head
from events.subjects import RunKey
from schemas.errors import DataLoss, NotFound, StoreUnavailable
from schemas.messages import Header


async def verify(store: JetStreamEventStore, key: RunKey, commits: int) -> None:
    """Check a run's hash chain, and that it has at least as many commits as were seen.

    A run that is retired at this moment, while the log is full, may look damaged: it is cut to its
    last commit before it gets its tombstone. Whoever raises an alarm looks twice.

    Raises:
        DataLoss: A commit is missing or altered.
        StoreUnavailable: The log cannot be reached.
    """
    stored = await store.stored(key)
    if stored and stored[-1].retired_at is not None:
        return
    head = EMPTY
    for item in stored:
        previous = item.headers.get(Header.PREVIOUS, "")
        head = check_link(key, head, item.sequence, item.version, previous, item.data)
    try:
        await check_end(store, key, head, commits)
    except NotFound:
        return  # retired between two requests


async def check_end(store: EventStore, key: RunKey, head: Head, commits: int) -> None:
    """Check that a log as it was read ends no earlier than it was seen to.

    Raises:
        DataLoss: It lacks its last commits.
        StoreUnavailable: A replica that is late was read; reading again helps.
        NotFound: The run was retired meanwhile.
    """
    if head.version >= commits:
        return
    end = await store.head(key)
    if end.version >= commits:
        raise StoreUnavailable("a replica of the event log is late; try again")
    raise DataLoss(
        f"the log of run {key.run_id} ends after commit {end.version}; {commits} were seen",
        version=end.version,
    )
