"""Log lines: few system calls, nothing lost, and what is urgent is not waited for."""

import asyncio
import io

from typing_extensions import override

from services.telemetry import LINES_WAITING, Lines


class Written(io.BytesIO):
    """Remembers what each write had."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[bytes] = []

    @override
    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.pieces.append(data)
        return super().write(data)


async def test_lines_of_a_turn_leave_together() -> None:
    """At its end; those of the next turn leave with that one's."""
    file = Written()
    lines = Lines(file)
    lines.info(b"1")
    lines.info(b"2")
    assert [] == file.pieces
    await asyncio.sleep(0)
    lines.info(b"3")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [b"1\n2\n", b"3\n"] == file.pieces


async def test_a_long_turn_does_not_heap_up_lines() -> None:
    """So many leave before it ends."""
    file = Written()
    lines = Lines(file)
    for _ in range(LINES_WAITING + 1):
        lines.info(b"1")
    assert [b"1\n" * LINES_WAITING] == file.pieces
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [b"1\n" * LINES_WAITING, b"1\n"] == file.pieces


async def test_a_warning_leaves_at_once_and_in_order() -> None:
    """With what was said before it."""
    file = Written()
    lines = Lines(file)
    lines.info(b"1")
    lines.warning(b"2")
    lines.error(b"3")
    assert [b"1\n2\n", b"3\n"] == file.pieces


async def test_a_thread_does_not_wait_for_the_loop() -> None:
    """Nor does whoever speaks before a loop runs, or after it ended in the middle of a turn."""
    file = Written()
    lines = Lines(file)
    await asyncio.to_thread(lines.info, b"1")
    assert [b"1\n"] == file.pieces


def test_what_waits_when_a_loop_ends_is_not_forgotten() -> None:
    """The next loop, or the end of the process, writes it."""
    file = Written()
    lines = Lines(file)

    async def say(line: bytes) -> None:
        lines.info(line)

    loop = asyncio.new_event_loop()
    loop.call_soon(loop.stop)
    waiting = loop.create_task(say(b"1"))
    loop.run_forever()
    loop.close()
    assert waiting.done()
    asyncio.run(say(b"2"))
    lines.leave()
    assert b"1\n2\n" == b"".join(file.pieces)
