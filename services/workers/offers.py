"""What a worker says of its models: which can run here, who stands in, and what was measured."""

from events.models import Offer
from schemas.catalogue import ModelSpec
from services.workers.isolation import Isolated
from services.workers.loaded import Loaded
from services.workers.loading import Loader


def possible(
    loader: Loader, model: tuple[str, ModelSpec], failed: str | None, fallback: ModelSpec | None
) -> Offer:
    """Return who can serve for a model.

    Args:
        loader: Knows what its engine lacks.
        model: Its name and entry.
        failed: Why it could not be loaded the last time it was tried.
        fallback: The entry of the model that may stand in.
    """
    name, spec = model
    reason = loader.engine(name, spec).missing()
    if reason is None:
        return Offer(model=name, served_by=name, reason=failed or "", available=failed is None)
    reason = f"{reason}; {spec.get}" if spec.get else reason
    if fallback is None or spec.fallback is None:
        return Offer(model=name, served_by=name, reason=reason, available=False)
    lacking = loader.engine(spec.fallback, fallback).missing()
    return Offer(model=name, served_by=spec.fallback, reason=reason, available=lacking is None)


def measured(offer: Offer, loaded: Loaded | None) -> Offer:
    """Return an offer with what is measured of the model that serves, if it is in memory."""
    if loaded is None:
        return offer
    facts = {
        "loaded": True,
        "devices": loaded.engine.devices(),
        "memory_bytes": loaded.engine.memory() or loaded.size_bytes,
        "device_bytes": loaded.device_bytes,
        "isolated": isinstance(loaded.engine, Isolated),
        "latency_ms": loaded.counters.latency_ms(),
    }
    return offer.model_copy(update=facts)
