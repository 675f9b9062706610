"""The one file that owns the grammar of subjects: `clawdbot.v1.<tenant>.<kind>...`.

`task` and `infer` carry model names, which may hold dots and slashes: `encode` turns any name into
one token and `decode` turns it back.
"""

import base64
import re
from dataclasses import dataclass
from functools import lru_cache

from schemas.errors import InvalidArgument


ROOT = "clawdbot.v1"
PARTS = 64
LANES = ("high", "normal", "low")
"""Priorities of tasks, the most urgent first."""
DEFAULT_LANE = "normal"
_PLAIN = re.compile(r"[A-Za-z0-9_-]")
_FNV_OFFSET, _FNV_PRIME = 0x811C9DC5, 0x01000193


@dataclass(frozen=True)
class RunKey:
    """A run's identity: (tenant, run)."""

    tenant: str
    run_id: str


@lru_cache(65_536)
def part(run_id: str) -> int:
    """Return the run's part: FNV-1a over the run id, modulo 64, as the server's `partition` does.

    Source: nats-server subject transforms, `partition(64, ...)`.
    """
    digest = _FNV_OFFSET
    for byte in run_id.encode():
        digest = ((digest ^ byte) * _FNV_PRIME) & 0xFFFFFFFF
    return digest % PARTS


@lru_cache(4096)
def encode(name: str) -> str:
    """Return `name` as one subject token: anything but letters, digits, `_`, `-` becomes `=hh`."""
    return "".join(
        chr(byte) if _PLAIN.match(chr(byte)) else f"={byte:02x}" for byte in name.encode()
    )


@lru_cache(maxsize=1024)
def decode(token: str) -> str:
    """Return the name behind a token made by `encode`.

    Raises:
        InvalidArgument: `encode` makes no such token.
    """
    raw = re.sub(rb"=([0-9a-f]{2})", lambda match: bytes([int(match[1], 16)]), token.encode())
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise InvalidArgument("the last token is no encoded name", field="subject") from error


def submit(tenant: str, workflow: str) -> str:
    """Where a run of `workflow` is asked for."""
    return f"{ROOT}.{tenant}.submit.{workflow}"


def control(key: RunKey) -> str:
    """Where a run is paused, cancelled, signalled."""
    return f"{ROOT}.{key.tenant}.control.{key.run_id}"


def cancel(key: RunKey) -> str:
    """Where workers hear which attempts nobody waits for any more."""
    return f"{ROOT}.{key.tenant}.cancel.{key.run_id}"


def withdraw(tenant: str, request_id: str) -> str:
    """Where workers hear which unlogged inferences nobody waits for any more."""
    return f"{ROOT}.{tenant}.withdraw.{request_id}"


def topic(tenant: str, subject: str) -> str:
    """Where a tenant's own messages go: what `emit` nodes publish and triggers listen to."""
    return f"{ROOT}.{tenant}.topic.{subject}"


def topic_of(subject: str) -> tuple[str, str]:
    """Read tenant and the tenant's own subject out of a `topic` subject."""
    tokens = subject.split(".")
    return tokens[2], ".".join(tokens[4:])


def matches(pattern: str, subject: str) -> bool:
    """Tell whether a subject fits a pattern with `*` and `>`. Source: NATS subject wildcards."""
    wanted, given = pattern.split("."), subject.split(".")
    for place, part_wanted in enumerate(wanted):
        if part_wanted == ">":
            return len(given) > place
        if place >= len(given) or part_wanted not in {"*", given[place]}:
            return False
    return len(wanted) == len(given)


def cron(tenant: str, workflow: str, name: str = "*") -> str:
    """Where the server keeps a schedule that starts runs."""
    return f"{ROOT}.{tenant}.timer.cron.{workflow}.{name}"


def cron_due(tenant: str, workflow: str, name: str) -> str:
    """Where it fires."""
    return f"{ROOT}.{tenant}.due.cron.{workflow}.{name}"


def cron_of(subject: str) -> tuple[str, str, str]:
    """Read tenant, workflow and the schedule's name out of a `cron_due` subject."""
    tokens = subject.split(".")
    return tokens[2], tokens[5], tokens[6]


def event(key: RunKey) -> str:
    """The run's own log."""
    return f"{ROOT}.{key.tenant}.event.{part(key.run_id)}.{key.run_id}"


def snapshot(key: RunKey) -> str:
    """Where the run's newest snapshot is kept; the next one replaces it."""
    return f"{ROOT}.{key.tenant}.snapshot.{part(key.run_id)}.{key.run_id}"


def live(key: RunKey) -> str:
    """Where the server republishes the run's log as it grows."""
    return f"{ROOT}.{key.tenant}.live.{part(key.run_id)}.{key.run_id}"


def task(tenant: str, modality: str, pool: str, lane: str, model: str) -> str:
    """Where work waits for a worker of the pool."""
    return f"{ROOT}.{tenant}.task.{modality}.{pool}.{lane}.{encode(model)}"


def warm(tenant: str, modality: str, pool: str, model: str) -> str:
    """Where the workers of a pool hear that a model will be wanted."""
    return f"{ROOT}.{tenant}.warm.{modality}.{pool}.{encode(model)}"


def tally(tenant: str, modality: str, worker: str) -> str:
    """Where a worker says what it has computed until now."""
    return f"{ROOT}.{tenant}.tally.{modality}.{worker}"


def lane_of(subject: str) -> str:
    """Read the lane out of a `task` subject."""
    return subject.split(".")[6]


def pool_of(subject: str) -> tuple[str, str, str]:
    """Read tenant, modality and pool out of a `task` subject."""
    tokens = subject.split(".")
    return tokens[2], tokens[4], tokens[5]


def every_task(tenant: str, modality: str, pool: str) -> str:
    """A filter for a tenant's tasks of one pool."""
    return f"{ROOT}.{tenant}.task.{modality}.{pool}.>"


def life() -> str:
    """Where TASKS keeps a name for as long as it keeps anything; no worker asks for it."""
    return f"{ROOT}._.task.life"


def result(key: RunKey) -> str:
    """Where a worker says how a task went."""
    return f"{ROOT}.{key.tenant}.result.{part(key.run_id)}.{key.run_id}"


def memo(tenant: str, digest: str) -> str:
    """Where a result is kept that later attempts may take."""
    return f"{ROOT}.{tenant}.memo.{digest}"


def gate(tenant: str, name: str) -> str:
    """Where it is kept who is inside a gate, and who waits."""
    return f"{ROOT}.{tenant}.gate.{name}"


def infer(tenant: str, modality: str, model: str, worker: str = "") -> str:
    """One unlogged inference, by any worker or by the one that is named."""
    subject = f"{ROOT}.{tenant}.infer.{modality}.{encode(model)}"
    return f"{subject}.{worker}" if worker else subject


def model_changed(tenant: str, model: str) -> str:
    """Where the server says how the repository has a model from now on."""
    return f"{ROOT}.{tenant}.model.{encode(model)}"


def call(tenant: str, workflow: str) -> str:
    """Submit, wait, answer."""
    return f"{ROOT}.{tenant}.call.{workflow}"


def chunk(key: RunKey, node_id: str) -> str:
    """Where a worker says parts of what a node gives, while it computes; by the node's path."""
    return f"{ROOT}.{key.tenant}.chunk.{key.run_id}.{encode(node_id)}"


def chunks(key: RunKey) -> str:
    """A filter for the parts of all nodes of a run."""
    return f"{ROOT}.{key.tenant}.chunk.{key.run_id}.*"


def dead(tenant: str, kind: str) -> str:
    """What could not be handled."""
    return f"{ROOT}.{tenant}.dead.{kind}"


def timer(key: RunKey, timer_id: str) -> str:
    """A wake-up kept by the server; it fires on `due`."""
    return f"{ROOT}.{key.tenant}.timer.{part(key.run_id)}.{key.run_id}.{timer_id}"


def due(key: RunKey) -> str:
    """Where timers fire."""
    return f"{ROOT}.{key.tenant}.due.{part(key.run_id)}.{key.run_id}"


def record(tenant: str, log: str, kind: str, *tokens: str) -> str:
    """Where a log of the `eventsourcing` library is kept: `kind` is event, tracking or live."""
    return ".".join([f"{ROOT}.{tenant}.record.{log}.{kind}", *tokens])


def blob_metas(bucket: str) -> str:
    """A filter for what the server's object store knows of each object. Source: ADR-20."""
    return f"$O.{bucket}.M.>"


def blob_meta(bucket: str, name: str) -> str:
    """Where the object store keeps what it knows of one object. Source: ADR-20."""
    return f"$O.{bucket}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"


def blob_chunks(bucket: str, nuid: str) -> str:
    """Where the object store keeps one object's bytes. Source: ADR-20."""
    return f"$O.{bucket}.C.{nuid}"


def bucket_keys(bucket: str, pattern: str) -> str:
    """A filter for the keys of the server's key-value store. Source: ADR-8."""
    return f"$KV.{bucket}.{pattern}"


def every(kind: str, tail: str = ">") -> str:
    """A filter for one kind over all tenants: `every("submit", "*")`."""
    return f"{ROOT}.*.{kind}.{tail}"


def pattern(kind: str, *names: str) -> str:
    """A filter that names its wildcards: `pattern("control", "run_id")`, the tenant comes first."""
    return ".".join([ROOT, "{tenant}", kind, *(f"{{{name}}}" for name in names)])


def run_key(subject: str) -> RunKey:
    """Read the run out of an `event`, `live`, `result` or `cancel` subject.

    Raises:
        InvalidArgument: Another kind of subject.
    """
    tokens = subject.split(".")
    if len(tokens) == 5 and tokens[3] == "cancel":  # noqa: PLR2004
        return RunKey(tokens[2], tokens[4])
    if len(tokens) != 6 or tokens[3] not in {"event", "live", "result"}:  # noqa: PLR2004
        raise InvalidArgument("not the subject of a run", subject=subject)
    return RunKey(tokens[2], tokens[5])


def tenant_and_name(subject: str) -> tuple[str, str]:
    """Read tenant and last token out of a `submit`, `call` or `control` subject."""
    tokens = subject.split(".")
    return tokens[2], tokens[-1]
