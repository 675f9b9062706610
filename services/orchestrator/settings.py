"""What the orchestrator reads from the environment besides the shared settings."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from events.retention import DAY_S, RetentionPolicy, SweepLimits
from services.settings import Settings


HOUR_S = 3600.0
MIB = 1024 * 1024


class OrchestratorSettings(Settings):
    """Settings of the orchestrator."""

    runs_cached_max: int = Field(default=4096, ge=1)
    """Runs whose folded state is kept in memory."""
    clock_interval_s: float = Field(default=0.1, gt=0, le=10)
    """How often due timeouts and retries are looked for."""
    share_s: float = Field(default=1.0, gt=0, le=3600)
    """How much work of one tenant may wait in a pool's queue, seconds."""
    share_tasks_min: int = Field(default=32, ge=1)
    """Tasks of one tenant that may wait in a pool's queue, however slow the pool is."""
    share_backlog_min: int = Field(default=256, ge=1)
    """Submissions that wait, from which on they are taken up by shares and not as they came."""
    share_weights: dict[str, Annotated[float, Field(ge=0.01, le=100)]] = Field(default={})
    """Of tenants, in what is taken up then: `{"acme": 3}`; 1 for one that is not named."""
    snapshot_every: int = Field(default=32, ge=1)
    """Commits between two snapshots of a run."""
    history_check_s: float = Field(default=10.0, gt=0, le=30)
    """How often the event log is compared with its high-water marks."""
    verify_runs_per_s: int = Field(default=50, ge=1, le=10_000)
    """How fast all runs are read again after the log was in doubt."""
    verify_interval_s: float = Field(default=DAY_S, gt=0)
    """How often all runs are read again while nothing happens."""
    retention_completed_days: float = Field(default=30.0, ge=0)
    """How long a completed run stays before it is archived and retired."""
    retention_failed_days: float = Field(default=90.0, ge=0)
    """The same for failed runs."""
    retention_cancelled_days: float = Field(default=30.0, ge=0)
    """The same for cancelled runs."""
    retention_rejected_days: float = Field(default=7.0, ge=0)
    """The same for rejected submissions."""
    blob_grace_hours: float = Field(default=24.0, ge=0)
    """How long a blob stays that no run cites; longer than any upload waits for its run."""
    archive_dir: Path | None = None
    """Where retired runs go; `archive` in the data directory if unset. Shared by all machines."""
    archive_bytes_max: int = Field(default=128 * MIB, ge=MIB, le=512 * MIB)
    """Commits and blobs of one archived run; four times as much memory is needed for a moment."""
    sweep_interval_s: float = Field(default=HOUR_S, ge=0)
    """How often expired runs are looked for; 0 keeps everything for ever."""
    blob_sweep_interval_s: float = Field(default=DAY_S, gt=0)
    """How often uncited blobs are looked for, which reads the whole log."""
    sweep_messages_max: int = Field(default=20_000, ge=1)
    """Commits that one sweep looks at."""
    sweep_runs_max: int = Field(default=200, ge=1)
    """Runs that one sweep retires."""
    sweep_blobs_max: int = Field(default=1000, ge=1)
    """Blobs that one sweep deletes."""

    def retention(self) -> RetentionPolicy:
        """Return how long things are kept."""
        return RetentionPolicy(
            completed_s=self.retention_completed_days * DAY_S,
            failed_s=self.retention_failed_days * DAY_S,
            cancelled_s=self.retention_cancelled_days * DAY_S,
            rejected_s=self.retention_rejected_days * DAY_S,
            blob_grace_s=self.blob_grace_hours * HOUR_S,
        )

    def sweep_limits(self) -> SweepLimits:
        """Return the most work of one sweep."""
        return SweepLimits(
            messages_max=self.sweep_messages_max,
            runs_max=self.sweep_runs_max,
            blobs_max=self.sweep_blobs_max,
            bundle_bytes_max=self.archive_bytes_max,
        )

    def archive(self) -> Path:
        """Return where retired runs go."""
        return self.archive_dir or self.data_dir / "archive"
