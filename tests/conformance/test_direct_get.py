"""Batched direct gets over a real server, from a copy that is silent at first."""

import pytest
from nats.aio.client import Client as Nats

from events.express import Express, Frame, encode_head
from events.jetstream import read_subject
from schemas.errors import StoreUnavailable


COPIES = "$JS.API.DIRECT.GET.COPIED"
MESSAGE = encode_head({"Nats-Subject": "copied.a", "Nats-Sequence": "7"})
LAST = b"NATS/1.0 204 EOB\r\nNats-Num-Pending: 0\r\n\r\n"


async def _copy(nc: Nats, silences: int) -> list[Frame]:
    """Answer as a copy of a stream does, but not the first questions; return the questions."""
    express = await Express.of(nc)
    asked: list[Frame] = []

    def answer(frame: Frame) -> None:
        asked.append(frame)
        if len(asked) > silences:
            express.publish(frame.reply, b"x", MESSAGE)
            express.publish(frame.reply, b"", LAST)

    await express.subscribe(COPIES, answer)
    return asked


@pytest.mark.parametrize("silences", [0, 2])
async def test_what_nobody_answers_is_asked_again(nc: Nats, silences: int) -> None:
    """A copy that takes a question and is silent, as on a stopped server, costs a moment."""
    asked = await _copy(nc, silences)
    found = await read_subject(nc, "COPIED", "copied.a", timeout_s=30)
    assert [(7, b"x")] == [(item.sequence, item.data) for item in found]
    assert silences < len(asked)
    assert 1 == len({frame.data for frame in asked})


async def test_silence_is_an_error_in_the_end(nc: Nats) -> None:
    """Within its time, however often it is asked."""
    await _copy(nc, silences=10)
    with pytest.raises(StoreUnavailable):
        await read_subject(nc, "COPIED", "copied.a", timeout_s=0.6)
