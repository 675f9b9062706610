"""What the orchestrator reads from the environment besides the shared settings."""

from pydantic import Field

from services.settings import Settings


class OrchestratorSettings(Settings):
    """Settings of the orchestrator."""

    runs_cached_max: int = Field(default=4096, ge=1)
    """Runs whose folded state is kept in memory."""
    clock_interval_s: float = Field(default=0.1, gt=0, le=10)
    """How often due timeouts and retries are looked for."""
    snapshot_every: int = Field(default=32, ge=1)
    """Commits between two snapshots of a run."""
