"""High-water marks: what was seen of the event log, kept outside of it (ADR 0012).

The server loses messages silently when a file of it is damaged or replaced by an older copy, and
then gives their sequences out again. Marks tell: when the stream was created, the last sequence
anybody saw, and for each part the newest commit with the digest of its bytes. They only ever rise,
and lag behind the log by about a second, so a log that contradicts them is not the one they were
taken of. Retention moves first sequences and deletes messages, but never lowers the last sequence,
and leaves a tombstone where a marked commit was.

Marks are kept twice: in the HISTORY bucket, shared by all orchestrators, and in a local file of
each. An operator who knows why the log regressed accepts it as it stands with
`clawdbot doctor --accept-history`; that overrules all older marks.
"""

import asyncio
import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path

from nats.aio.client import Client as Nats
from nats.js import JetStreamContext
from nats.js.errors import APIError, NotFoundError
from pydantic import TypeAdapter, ValidationError

from events.documents import SharedDocument
from events.files import write_durably
from events.hedge import hedged
from events.jetstream import BUS_ERRORS
from events.store import RETIRED
from events.streams import EVENTS
from events.subjects import RunKey, event
from schemas.errors import DataLoss, StoreUnavailable


DOCUMENT = "marks"
ACCEPTED_LATER_S = 0.001


@dataclass(frozen=True)
class PartHead:
    """The newest commit that was seen in a part of the log."""

    tenant: str
    run_id: str
    sequence: int
    digest: str
    """SHA-256 of its stored bytes."""


@dataclass(frozen=True)
class Marks:
    """What was seen of the log."""

    created: str
    """When the stream was created, as the server says."""
    sequence: int = 0
    """Of the last commit."""
    heads: dict[int, PartHead] = field(default_factory=dict)
    """By part."""
    accepted_at: float = 0.0
    """When an operator accepted the log as it stood then, seconds since the epoch; 0 for never."""
    refused: str = ""
    """What the log contradicts, while the orchestrators refuse it."""

    def union(self, other: "Marks") -> "Marks":
        """Return all that both say; what an operator accepted last, or an older stream, rules."""
        if self.accepted_at != other.accepted_at:
            return max(self, other, key=lambda marks: marks.accepted_at)
        if self.created != other.created:
            return min(self, other, key=lambda marks: marks.created)
        heads = dict(self.heads)
        for number, head in other.heads.items():
            if number not in heads or heads[number].sequence < head.sequence:
                heads[number] = head
        sequence = max(self.sequence, other.sequence)
        return replace(self, sequence=sequence, heads=heads)


_MARKS = TypeAdapter(Marks)


async def observe(nc: Nats) -> Marks:
    """Return the log's own word: when it was created and where it ends.

    Raises:
        StoreUnavailable: The log does not answer.
        DataLoss: There is no log.
    """
    try:
        js = nc.jetstream()
        info = await hedged(lambda: js.stream_info(EVENTS))
    except NotFoundError as error:
        raise DataLoss("the event log is gone") from error
    except (APIError, *BUS_ERRORS) as error:
        raise StoreUnavailable("the event log does not answer") from error
    return Marks(str(info.created), info.state.last_seq)


async def contradiction(nc: Nats, marks: Marks) -> str:
    """Return what the log contradicts, in words; nothing when it is the log the marks know.

    Asks the log's leader: another replica may be late.

    Raises:
        StoreUnavailable: The log does not answer.
    """
    try:
        log = await observe(nc)
    except DataLoss as error:
        return error.message
    if log.created != marks.created:
        return f"the event log was created at {log.created}, not at {marks.created}"
    if log.sequence < marks.sequence:
        return f"the event log ends at {log.sequence}; {marks.sequence} was seen"
    js = nc.jetstream()
    for head in marks.heads.values():
        if not await _there(js, head):
            return f"commit {head.sequence} of the event log, of run {head.run_id}, is not as seen"
    return ""


async def _there(js: JetStreamContext, head: PartHead) -> bool:
    """Tell whether the log holds a commit, or the tombstone of its run."""
    subject = event(RunKey(head.tenant, head.run_id))
    try:
        try:
            found = await hedged(lambda: js.get_msg(EVENTS, head.sequence))
        except NotFoundError:
            last = await hedged(lambda: js.get_last_msg(EVENTS, subject))
            return RETIRED in (last.headers or {})
    except NotFoundError:
        return False
    except (APIError, *BUS_ERRORS) as error:
        raise StoreUnavailable("the event log does not answer") from error
    return found.subject == subject and hashlib.sha256(found.data or b"").hexdigest() == head.digest


@dataclass(frozen=True)
class MarksFile:
    """The marks in a local file."""

    path: Path

    def read(self) -> Marks | None:
        """Return them; None when there are none yet.

        Raises:
            DataLoss: The file is damaged.
        """
        try:
            return _MARKS.validate_json(self.path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            raise DataLoss("the file of high-water marks cannot be read") from error

    async def write(self, marks: Marks) -> None:
        """Replace them, durably.

        Raises:
            StoreUnavailable: The file cannot be written now.
        """
        try:
            await asyncio.to_thread(write_durably, self.path, _MARKS.dump_json(marks))
        except OSError as error:
            raise StoreUnavailable("the file of high-water marks cannot be written") from error


async def read_shared(nc: Nats) -> tuple[Marks | None, int]:
    """Return the marks in the bucket and their revision.

    Raises:
        StoreUnavailable: The bucket does not answer.
    """
    data, revision = await SharedDocument(nc, DOCUMENT).read()
    try:
        return (_MARKS.validate_json(data) if data else None), revision
    except ValidationError:
        return None, revision  # damaged as well: whoever knows better writes it anew


async def replace_shared(nc: Nats, marks: Marks, revision: int) -> bool:
    """Write the marks in the bucket unless somebody did since `revision`; tell whether we did.

    Raises:
        StoreUnavailable: The bucket does not answer.
    """
    return await SharedDocument(nc, DOCUMENT).replace(_MARKS.dump_json(marks), revision)


async def refusal(nc: Nats) -> str:
    """Return why the orchestrators refuse the log, in words; nothing when they do not.

    Raises:
        StoreUnavailable: The bucket does not answer.
    """
    marks, _ = await read_shared(nc)
    return marks.refused if marks else ""


async def accept(nc: Nats, at: float) -> Marks:
    """Accept the log as it stands: for whoever knows why it regressed.

    Args:
        nc: The connection.
        at: Now, seconds since the epoch.

    Raises:
        StoreUnavailable: The log or the bucket does not answer.
        DataLoss: There is no log.
    """
    while True:
        known, revision = await read_shared(nc)
        since = max(at, known.accepted_at + ACCEPTED_LATER_S if known else 0.0)
        marks = replace(await observe(nc), accepted_at=since)
        if await replace_shared(nc, marks, revision):
            return marks
