"""What every service reads from the environment, once; the only reader of it."""

import base64
import os
import secrets
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from events.keys import MASTER_KEY_BYTES, parse_master_key
from events.streams import MIB, StreamLimits
from schemas.catalogue import Catalogue
from schemas.catalogue import load as load_catalogue
from schemas.complaints import first_complaint
from schemas.errors import FailedPrecondition


BUS_SILENCE_S = 3.0
"""Shorter than an election of nats-server, which takes 4 s at least."""


class Settings(BaseSettings):
    """Shared settings; each variable is the field's name in capitals after `CLAWDBOT_`."""

    model_config = SettingsConfigDict(
        env_prefix="CLAWDBOT_",
        env_ignore_empty=True,
        frozen=True,
        extra="ignore",
        use_attribute_docstrings=True,
    )

    nats_url: str = "nats://127.0.0.1:4222"
    """Comma-separated addresses of the server or the cluster."""
    bus_silence_s: float = Field(default=BUS_SILENCE_S, ge=0.5, le=300)
    """A server that sends nothing for so long, not even what it is asked for, is left."""
    data_dir: Path = Path(".clawdbot")
    """Where the run index and a generated master key are kept."""
    instance: str = Field(default="0", pattern=r"^[A-Za-z0-9_-]{1,32}$")
    """Tells replicas that share a data directory apart."""
    master_key: SecretStr | None = None
    """Base64 of 32 bytes; wraps the tenants' keys. Made in the data directory if unset."""
    catalogue: Path | None = None
    """A YAML catalogue instead of the one that ships with clawdbot."""
    models_dir: Path = Path("models")
    """Where downloaded weights are looked for."""
    allow_fallback: bool = True
    """Whether a declared fallback may serve a model whose weights are absent."""
    log_format: Literal["auto", "json", "console"] = "auto"
    metrics_host: str = "0.0.0.0"  # noqa: S104 - as Prometheus' own client; containers are scraped
    """Address of `/metrics`."""
    metrics_port: int | None = Field(default=None, ge=0, le=65535)
    """Port of `/metrics`; unset serves none, 0 takes a free one and says so in the log line
    `metrics_listening`."""
    replicas: int = Field(default=1, ge=1, le=5)
    """Copies of every stream; 3 on a cluster."""
    events_bytes_max: int = Field(default=8192 * MIB, ge=MIB)
    commands_bytes_max: int = Field(default=1024 * MIB, ge=MIB)
    blobs_bytes_max: int = Field(default=8192 * MIB, ge=MIB)
    artefacts_bytes_max: int = Field(default=8192 * MIB, ge=MIB)
    """Files of the model repository."""
    work_bytes_max: int = Field(default=512 * MIB, ge=MIB)
    """TASKS and RESULTS each; they live in the server's memory."""
    ack_wait_s: float = Field(default=30.0, gt=0.5, le=3600)
    """A message whose handler died is delivered again after this long."""
    max_deliver: int = Field(default=5, ge=1, le=100)
    """Deliveries before a message is dead-lettered."""
    in_flight_max: int = Field(default=256, ge=1, le=10_000)
    """Messages one process handles at the same time."""
    together_max: int = Field(default=32, ge=1, le=256)
    """Submissions, or results, in one message of a stream, when they queue; 1: each alone."""
    freed_bytes_kept: int = Field(default=64 * MIB, ge=0, lt=2**31)
    """Memory that large messages leave and that is kept for the next ones; 0: as the allocator
    does by itself."""

    def limits(self) -> StreamLimits:
        """Return the limits of the streams."""
        return StreamLimits(
            replicas=self.replicas,
            commands_bytes_max=self.commands_bytes_max,
            events_bytes_max=self.events_bytes_max,
            work_bytes_max=self.work_bytes_max,
            blobs_bytes_max=self.blobs_bytes_max,
            artefacts_bytes_max=self.artefacts_bytes_max,
            ack_wait_s=self.ack_wait_s,
        )

    def load_catalogue(self) -> Catalogue:
        """Load the catalogue.

        Raises:
            InvalidArgument: It breaks its schema.
        """
        return load_catalogue(self.catalogue)

    def master_key_bytes(self) -> bytes:
        """Return the master key, making one in the data directory at the very first start.

        Raises:
            FailedPrecondition: The key is malformed.
        """
        if self.master_key is not None:
            return parse_master_key(self.master_key.get_secret_value())
        path = self.data_dir / "master.key"
        self.data_dir.mkdir(parents=True, exist_ok=True)
        fresh = base64.b64encode(secrets.token_bytes(MASTER_KEY_BYTES)).decode()
        draft = self.data_dir / f"master.key.{secrets.token_hex(8)}"
        draft.touch(mode=0o600)
        draft.write_text(fresh, encoding="ascii")
        try:
            path.hardlink_to(draft)  # atomic, with its content: of two services one wins
        except FileExistsError:
            pass  # there is a key already
        finally:
            draft.unlink()
        return parse_master_key(path.read_text(encoding="ascii").strip())


def secret(variable: str) -> str | None:
    """Return what an environment variable holds that another setting names."""
    return os.environ.get(variable)


S = TypeVar("S", bound=Settings)


def read(kind: type[S]) -> S:
    """Read the environment.

    Raises:
        FailedPrecondition: A variable is wrong; names it.
    """
    try:
        return kind()
    except ValidationError as error:
        loc, message = first_complaint(error)
        name = "CLAWDBOT_" + "_".join(str(part) for part in loc).upper()
        raise FailedPrecondition(message, field=name) from error
