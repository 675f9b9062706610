"""What the client and the command line read from the environment."""

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from schemas.complaints import first_complaint
from schemas.errors import FailedPrecondition


class FaceSettings(BaseSettings):
    """Each variable is the field's name in capitals after `CLAWDBOT_`."""

    model_config = SettingsConfigDict(
        env_prefix="CLAWDBOT_",
        env_ignore_empty=True,
        frozen=True,
        extra="ignore",
        use_attribute_docstrings=True,
    )

    url: str = "http://127.0.0.1:8080"
    """Where the gateway listens."""
    data_dir: Path = Path(".clawdbot")
    """Where `clawdbot up` keeps everything that must survive a restart."""
    nats_url: str = ""
    """An existing server or cluster; `clawdbot up` starts one of its own when it is empty."""
    http_host: str = "127.0.0.1"
    """Address the gateway listens on."""
    http_port: int = Field(default=8080, ge=0, le=65535)
    """Port the gateway listens on; 0 takes a free one."""
    nats_port: int = Field(default=4222, ge=0, le=65535)
    """Port of the embedded server; 0 takes a free one."""
    workers_max: int = Field(default=8, ge=1, le=256)
    """Worker processes of one modality that `clawdbot up` starts at most."""
    metrics_port: int = Field(default=0, ge=0, le=65000)
    """Port of the first service's `/metrics` under `clawdbot up`, the others take the next ones; 0
    takes free ones. `DATA_DIR/metrics.json` tells Prometheus where they all are."""
    catalogue: Path | None = None
    """A YAML catalogue instead of the one that ships with clawdbot."""
    models_dir: Path = Path("models")
    """Where downloaded weights are looked for."""


def read(**given: Any) -> FaceSettings:
    """Read the environment; what is given goes before it.

    Raises:
        FailedPrecondition: A value is wrong; names its variable.
    """
    try:
        return FaceSettings(**given)
    except ValidationError as error:
        loc, message = first_complaint(error)
        name = "CLAWDBOT_" + "_".join(str(part) for part in loc).upper()
        raise FailedPrecondition(message, field=name) from error
