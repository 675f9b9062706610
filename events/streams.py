"""The streams, buckets and consumers of the mesh, and how they come to be."""

from dataclasses import dataclass

from nats.aio.client import Client as Nats
from nats.js import JetStreamContext
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DiscardPolicy,
    KeyValueConfig,
    ObjectStoreConfig,
    RePublish,
    RetentionPolicy,
    StorageType,
    StreamConfig,
)
from nats.js.errors import BadRequestError, NotFoundError

from events.subjects import ROOT, bucket_keys, every
from schemas.workflow import MEMO_S_MAX


COMMANDS, EVENTS, TASKS, RESULTS = "COMMANDS", "EVENTS", "TASKS", "RESULTS"
TIMERS, TOPICS, DEAD, SNAPSHOTS = "TIMERS", "TOPICS", "DEAD", "SNAPSHOTS"
DEFINITIONS, KEYS, MODELS, BLOBS = "DEFINITIONS", "KEYS", "MODELS", "BLOBS"
CANCELS, GATES, MEMOS = "CANCELS", "GATES", "MEMOS"
REPOSITORY, ARTEFACTS = "REPOSITORY", "ARTEFACTS"
HISTORY = "HISTORY"
"""What is known about the log, kept outside of it: its high-water marks, who sweeps it when."""
CURSORS = "CURSORS"
"""How far the submissions of a workflow were taken out of turn, while some flood the queue."""

SUBMIT_CONSUMER, CONTROL_CONSUMER = "orchestrator-submit", "orchestrator-control"
RESULT_CONSUMER = "orchestrator-result"
DUE_CONSUMER, TOPIC_CONSUMER = "orchestrator-due", "orchestrator-topic"

MIB = 1024 * 1024
CARD_TTL_S = 60.0
"""The card of a worker that was killed goes by itself; a living worker renews its own."""
CURSOR_TTL_S = 3600.0


@dataclass(frozen=True)
class StreamLimits:
    """Every size limit of the streams, in bytes unless the name says otherwise."""

    replicas: int = 1
    commands_bytes_max: int = 1024 * MIB
    events_bytes_max: int = 8192 * MIB
    work_bytes_max: int = 512 * MIB
    """TASKS and RESULTS each; kept in memory, rebuilt from the log."""
    dead_bytes_max: int = 256 * MIB
    cancels_bytes_max: int = 16 * MIB
    memos_bytes_max: int = 1024 * MIB
    memos_age_s: float = MEMO_S_MAX
    blobs_bytes_max: int = 8192 * MIB
    artefacts_bytes_max: int = 8192 * MIB
    """Files of the model repository."""
    bucket_bytes_max: int = 256 * MIB
    """Each of the key-value buckets."""
    message_bytes_max: int = 8 * MIB
    ack_wait_s: float = 30.0
    max_ack_pending: int = 2048
    duplicate_window_s: float = 120.0
    topics_age_s: float = 86_400.0
    """How long the tenants' own messages are kept for triggers."""
    cancels_age_s: float = 3600.0
    """How long it is known what nobody waits for: as long as an attempt may take."""


def stream_configs(limits: StreamLimits) -> list[StreamConfig]:
    """Return the configuration of every stream."""
    commands = _durable(limits, COMMANDS, "submit", limits.commands_bytes_max, "*")
    commands.subjects = [every("submit", "*"), every("control", "*")]
    commands.retention = RetentionPolicy.WORK_QUEUE
    events = _durable(limits, EVENTS, "event", limits.events_bytes_max, "*.*")
    events.republish = RePublish(
        src=f"{ROOT}.*.event.*.*",
        dest=ROOT + ".{{wildcard(1)}}.live.{{wildcard(2)}}.{{wildcard(3)}}",
    )
    events.allow_atomic = True
    timers = _rolling(_durable(limits, TIMERS, "timer", limits.dead_bytes_max))
    timers.subjects = [every("timer"), every("due")]
    timers.allow_msg_schedules = True  # beside it the server wants to discard old
    timers.allow_msg_ttl = True
    topics = _rolling(_durable(limits, TOPICS, "topic", limits.dead_bytes_max))
    topics.max_age = limits.topics_age_s
    snapshots = _rolling(_durable(limits, SNAPSHOTS, "snapshot", limits.events_bytes_max, "*.*"))
    snapshots.max_msgs_per_subject = 1
    dead = _rolling(_durable(limits, DEAD, "dead", limits.dead_bytes_max))
    cancels = _rolling(_durable(limits, CANCELS, "cancel", limits.cancels_bytes_max, "*"))
    cancels.storage = StorageType.MEMORY
    cancels.max_age = limits.cancels_age_s
    gates = _durable(limits, GATES, "gate", limits.bucket_bytes_max, "*")
    gates.max_msgs_per_subject = 1
    gates.allow_msg_ttl = True
    memos = _rolling(_durable(limits, MEMOS, "memo", limits.memos_bytes_max, "*"))
    memos.max_msgs_per_subject = 1
    memos.max_age = limits.memos_age_s
    tasks, results = _work(limits, TASKS, "task"), _work(limits, RESULTS, "result")
    work = [commands, events, tasks, results, cancels, gates]
    return [*work, timers, topics, snapshots, memos, dead]


def _durable(
    limits: StreamLimits, name: str, kind: str, bytes_max: int, tail: str = ">"
) -> StreamConfig:
    """Return a stream on disk that refuses what does not fit."""
    return StreamConfig(
        name=name,
        subjects=[every(kind, tail)],
        storage=StorageType.FILE,
        num_replicas=limits.replicas,
        discard=DiscardPolicy.NEW,
        max_bytes=bytes_max,
        max_msg_size=limits.message_bytes_max,
        allow_direct=True,
    )


def _rolling(config: StreamConfig) -> StreamConfig:
    """Let a stream forget its oldest message instead: what it holds can be made again."""
    config.discard = DiscardPolicy.OLD
    return config


def _work(limits: StreamLimits, name: str, kind: str) -> StreamConfig:
    """Return a queue in memory; what it held follows from the log."""
    return StreamConfig(
        name=name,
        subjects=[every(kind)],
        retention=RetentionPolicy.WORK_QUEUE,
        storage=StorageType.MEMORY,
        num_replicas=limits.replicas,
        discard=DiscardPolicy.NEW,
        max_bytes=limits.work_bytes_max,
        max_msg_size=limits.message_bytes_max,
        duplicate_window=limits.duplicate_window_s,
    )


def work_consumer(name: str, filter_subject: str, limits: StreamLimits) -> ConsumerConfig:
    """Return a durable pull consumer: explicit acks, redelivery for ever (the runtime counts)."""
    return ConsumerConfig(
        durable_name=name,
        filter_subject=filter_subject,
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=limits.ack_wait_s,
        max_deliver=-1,
        max_ack_pending=limits.max_ack_pending,
    )


async def ensure(nc: Nats, limits: StreamLimits) -> None:
    """Create what is missing; leave what is there (limits of an existing stream are kept).

    Safe to run from every service at once, and again after a server lost its memory streams.
    """
    js = nc.jetstream()
    for config in stream_configs(limits):
        await ensure_stream(js, config)
    await ensure_consumer(
        js, COMMANDS, work_consumer(SUBMIT_CONSUMER, every("submit", "*"), limits)
    )
    await ensure_consumer(js, RESULTS, work_consumer(RESULT_CONSUMER, every("result"), limits))
    await ensure_consumer(js, TIMERS, work_consumer(DUE_CONSUMER, every("due"), limits))
    await ensure_consumer(js, TOPICS, work_consumer(TOPIC_CONSUMER, every("topic"), limits))
    for bucket in (DEFINITIONS, KEYS, HISTORY):
        await _ensure_bucket(js, bucket, limits, None)
    await _ensure_bucket(js, MODELS, limits, CARD_TTL_S)
    await _ensure_bucket(js, CURSORS, limits, CURSOR_TTL_S, storage=StorageType.MEMORY)
    await _ensure_bucket(js, REPOSITORY, limits, None, republish=_told_models())
    await _ensure_objects(js, BLOBS, limits.blobs_bytes_max, limits)
    await _ensure_objects(js, ARTEFACTS, limits.artefacts_bytes_max, limits)


async def ensure_stream(js: JetStreamContext, config: StreamConfig) -> None:
    """Create a stream unless it exists."""
    assert config.name is not None
    try:
        await js.stream_info(config.name)
    except NotFoundError:
        try:
            await js.add_stream(config)
        except BadRequestError as error:
            if error.err_code != 10058:  # noqa: PLR2004 - somebody else was first
                raise


async def ensure_consumer(js: JetStreamContext, stream: str, config: ConsumerConfig) -> None:
    """Create a durable consumer unless it exists as it should be."""
    assert config.durable_name is not None
    try:
        known = await js.consumer_info(stream, config.durable_name)
    except NotFoundError:
        known = None
    # The version before may have made it with another filter, which is changed in place.
    if known is None or known.config.filter_subject != config.filter_subject:
        await js.add_consumer(stream, config)


def _told_models() -> RePublish:
    """Return how everybody hears of a change in the model repository."""
    return RePublish(
        src=bucket_keys(REPOSITORY, "*.*"), dest=ROOT + ".{{wildcard(1)}}.model.{{wildcard(2)}}"
    )


async def _ensure_bucket(
    js: JetStreamContext,
    bucket: str,
    limits: StreamLimits,
    ttl_s: float | None,
    *,
    republish: RePublish | None = None,
    storage: StorageType = StorageType.FILE,
) -> None:
    try:
        await js.key_value(bucket)
    except NotFoundError:
        try:
            await js.create_key_value(
                KeyValueConfig(
                    bucket=bucket,
                    history=1,
                    replicas=limits.replicas,
                    direct=True,
                    ttl=ttl_s,
                    storage=storage,
                    max_bytes=limits.bucket_bytes_max
                    if storage is StorageType.FILE
                    else limits.cancels_bytes_max,
                    republish=republish,
                )
            )
        except BadRequestError as error:
            if error.err_code != 10058:  # noqa: PLR2004 - somebody else was first
                raise


async def _ensure_objects(
    js: JetStreamContext, bucket: str, bytes_max: int, limits: StreamLimits
) -> None:
    try:
        await js.object_store(bucket)
    except NotFoundError:
        try:
            await js.create_object_store(
                bucket,
                config=ObjectStoreConfig(
                    bucket=bucket, replicas=limits.replicas, max_bytes=bytes_max
                ),
            )
        except BadRequestError as error:
            if error.err_code != 10058:  # noqa: PLR2004 - somebody else was first
                raise
