"""Shared memory that is not allowed."""

import pytest

from schemas.inference_management import RegionRequest
from services.errors import Unsupported
from services.gateway.inference.regions import Place, Regions


def test_nothing_is_read_unless_it_is_allowed() -> None:
    """Every way in says which setting allows it; there is nothing to list or to forget."""
    regions = Regions(allowed=False)
    for way in (
        lambda: regions.register("r", RegionRequest(key="k", byte_size=8)),
        lambda: regions.read(Place("r", 0, 8)),
        lambda: regions.check("r"),
    ):
        with pytest.raises(Unsupported, match="CLAWDBOT_SHARED_MEMORY"):
            way()
    regions.unregister()
    assert () == regions.status()
