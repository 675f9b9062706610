"""The hash chain: each commit names the SHA-256 of the stored bytes before it."""

import hashlib
from collections.abc import Sequence

from events.store import Head
from events.subjects import RunKey
from schemas.errors import DataLoss


def check_link(
    key: RunKey, head: Head, sequence: int, version: int, previous: str, stored: bytes
) -> Head:
    """Return the head after one more stored commit.

    Raises:
        DataLoss: The commit does not follow the one before it.
    """
    if version != head.version + 1 or previous != head.digest or sequence <= head.sequence:
        raise DataLoss(
            f"the log of run {key.run_id} is altered after commit {head.version}; it is refused",
            version=version,
            sequence=sequence,
        )
    return Head(sequence, version, hashlib.sha256(stored).hexdigest())


def check_head(key: RunKey, head: Head, stored: Sequence[tuple[int, bytes]]) -> None:
    """Check that a log read from a known head on begins with the commit this head stands for.

    Args:
        key: The run.
        head: A head kept elsewhere, such as a snapshot's.
        stored: (sequence, stored bytes) of the log, from the commit of `head` on.

    Raises:
        DataLoss: It does not: the log, or the head, is altered or older than the other.
    """
    if stored:
        sequence, data = stored[0]
        if sequence == head.sequence and hashlib.sha256(data).hexdigest() == head.digest:
            return
    raise DataLoss(
        f"the log of run {key.run_id} does not hold the known commit {head.version}",
        version=head.version,
        sequence=head.sequence,
    )
