"""Runs out of files: read, folded and shown without a mesh."""

from pathlib import Path

from clawdbot.results import Run
from events.bundles import folded
from events.recording import Recording, unpack_recording
from events.tape import Recorded, Tape, run_view
from schemas.errors import InvalidArgument


Source = str | Path | bytes
"""A run: its id, or a bundle of it."""


def bundle_bytes(bundle: bytes | Path) -> bytes:
    """Return the bytes of a bundle.

    Raises:
        InvalidArgument: It cannot be read.
    """
    if isinstance(bundle, bytes):
        return bundle
    try:
        return bundle.read_bytes()
    except OSError as error:
        raise InvalidArgument(f"cannot read {bundle}: {error.strerror}", field="bundle") from error


def open_recording(bundle: bytes | Path) -> Recording:
    """Read and verify a bundle.

    Raises:
        InvalidArgument: It cannot be read, or does not verify.
    """
    recording = unpack_recording(bundle_bytes(bundle))
    folded(recording)
    return recording


def records_of(recording: Recording) -> list[Recorded]:
    """Return a run's events with their places."""
    return Tape.of(recording.history()).records


def run_of(recording: Recording, until: int | None = None) -> Run:
    """Return a run folded from its events, up to one of them.

    Raises:
        InvalidArgument: It has fewer events.
    """
    records = records_of(recording)
    if until is not None and until > len(records):
        raise InvalidArgument(f"the run has {len(records)} events", field="until")
    return Run.model_validate(run_view(recording.key, records[:until]).model_dump())


def blobs_of(recording: Recording, wanted: set[str]) -> dict[str, bytes]:
    """Return the blobs among those wanted that a bundle holds."""
    return {name: data for name, (data, _) in recording.blobs.items() if name in wanted}
