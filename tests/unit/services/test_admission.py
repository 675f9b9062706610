"""Who may begin: after a submission that was not stored, one at a time tries."""

import asyncio

import pytest

from schemas.errors import BusUnavailable, StoreFull
from services.gateway import admission
from services.gateway.admission import Admission


def _fails(gate: Admission) -> None:
    with pytest.raises(BusUnavailable, match="silent"), gate.storing():
        raise BusUnavailable("silent")


async def test_after_a_failure_others_are_refused_at_once() -> None:
    """Until it is time for the next try."""
    gate = Admission(0.0)
    _fails(gate)
    with pytest.raises(BusUnavailable, match="stores nothing"), gate.storing():
        raise AssertionError


async def test_one_at_a_time_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    """While it does, all others are refused; its success lets everybody in."""
    monkeypatch.setattr(admission, "RETRY_S", 0.0)
    gate = Admission(0.0)
    _fails(gate)
    with gate.storing(), pytest.raises(BusUnavailable), gate.storing():
        raise AssertionError
    with gate.storing(), gate.storing():
        pass


async def test_a_client_that_leaves_or_a_full_log_blocks_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They say nothing about the bus."""
    monkeypatch.setattr(admission, "RETRY_S", 0.0)
    gate = Admission(0.0)
    _fails(gate)
    with pytest.raises(asyncio.CancelledError), gate.storing():
        raise asyncio.CancelledError
    with pytest.raises(StoreFull), gate.storing():
        raise StoreFull("no room")
    with gate.storing(), gate.storing():
        pass
