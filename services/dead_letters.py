"""What nobody could handle, as it is kept in DEAD."""

from events.express import encode_head
from events.subjects import dead
from schemas.errors import ClawdbotError
from schemas.messages import Header
from services.runtime import Delivery, Outgoing


def dead_letter(
    kind: str, delivery: Delivery, error: ClawdbotError, name: str, bytes_max: int
) -> Outgoing:
    """Return a message for DEAD: as it came, with the reason; cut where it would not fit.

    Args:
        kind: What it was.
        delivery: The message.
        error: Why nobody could handle it.
        name: Its own within the tenant, so that it is kept once.
        bytes_max: What the server takes.
    """
    tenant = delivery.subject.split(".")[2]
    said = {
        Header.REASON: _one_line(error.message),
        Header.SUBJECT: delivery.subject,
        Header.MSG_ID: f"{tenant}.{name}",
    }
    headers = {**delivery.headers, **said}
    room = bytes_max - len(encode_head(headers))
    if room < len(delivery.data):  # what is said of it must still fit
        headers, room = said, bytes_max - len(encode_head(said))
    return Outgoing(dead(tenant, kind), delivery.data[:room], headers)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:256]
