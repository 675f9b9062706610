"""Several requests, or several answers, in one message of the bus.

What a process asks of the same service in one turn of its loop travels together, and so do the
answers that are there in one turn: with many requests under way a message, its parsing and its
system calls are shared by all in it; a request alone is a message as ever, and waits for nobody.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import ormsgpack

from events.express import encode_head
from schemas.errors import InvalidArgument
from schemas.messages import Header
from schemas.pieces import LARGE_BYTES, Body


T = TypeVar("T")
B = TypeVar("B", bound=Body)

ITEMS_MAX = 256
"""Requests or answers of one bundle."""
BYTES_MAX = LARGE_BYTES
"""Bodies of one bundle; a larger one is alone."""
HEADERS_BYTES = 4096
"""Room for the headers of a request or an answer; the bus counts them as payload."""
HEAD = encode_head({Header.BUNDLE: "1"})
"""The headers of a message that is a bundle, and of no other."""


class Item(NamedTuple, Generic[B]):
    """A request, or an answer."""

    token: str
    """Names a request to the one who asked."""
    headers: dict[str, str]
    body: B


def bundles(items: Sequence[T], size: Callable[[T], int]) -> Iterator[Sequence[T]]:
    """Yield what may travel together, in order; `size` gives the bytes of a body."""
    begin = total = 0
    for index, item in enumerate(items):
        more = size(item)
        if index > begin and (total + more > BYTES_MAX or index - begin == ITEMS_MAX):
            yield items[begin:index]
            begin, total = index, 0
        total += more
    if items:
        yield items[begin:]


def body_size(item: Item[Body]) -> int:
    """Return the bytes of a body."""
    return len(item.body)


def pack(items: Sequence[Item[Body]]) -> bytes:
    """Return the body of a bundle."""
    return ormsgpack.packb([tuple(item) for item in items], default=bytes)


def unpack(body: bytes) -> list[Item[bytes]]:
    """Read the body of a bundle.

    Raises:
        InvalidArgument: It is none.
    """
    try:
        found: list[Any] = [Item(*item) for item in ormsgpack.unpackb(body)]
    except (ormsgpack.MsgpackDecodeError, TypeError) as error:
        raise InvalidArgument("the bundle is no list of token, headers and body") from error
    if len(found) > ITEMS_MAX:
        raise InvalidArgument(f"a bundle has at most {ITEMS_MAX} items, not {len(found)}")
    for token, headers, data in found:
        plain = isinstance(headers, dict) and {str}.issuperset(map(type, headers.values()))
        if not (type(token) is str and plain and type(data) is bytes):
            raise InvalidArgument("an item of a bundle is a token, headers and a body")
    return found
