"""The recorders against the `eventsourcing` library's own test cases, and what is ours."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any, Protocol
from uuid import UUID

import pytest
from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event
from eventsourcing.persistence import (
    DataError,
    IntegrityError,
    InterfaceError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
    StoredEvent,
)
from eventsourcing.tests import persistence as library
from eventsourcing.utils import Environment
from nats.aio.client import Client as Nats
from typing_extensions import override

from events.catalog import RunCancelled, RunStarted
from events.codec import COMMIT_TOPIC, CommitMapper
from events.evolve import fold
from events.jetstream import JetStreamEventStore
from events.keys import JetStreamKeyRing
from events.recorders import (
    Bridge,
    EventLogRecorder,
    JetStreamAggregateRecorder,
    JetStreamApplicationRecorder,
    JetStreamFactory,
    JetStreamProcessRecorder,
    JetStreamTrackingRecorder,
    RecordLog,
)
from events.store import EMPTY, Append, Head
from events.streams import StreamLimits, ensure
from events.subjects import RunKey
from schemas.ids import new_id
from schemas.plan import Plan


pytestmark = pytest.mark.nats


class Server(Protocol):
    """What these tests need of the fixture `nats_server`."""

    @property
    def url(self) -> str:
        """Address of a server with JetStream."""


@pytest.fixture(scope="module")
def bridge(nats_server: Server) -> Iterator[Bridge]:
    """A connection for recorders."""
    made = Bridge(nats_server.url)
    yield made
    made.close()


class WithBridge:
    """Gives the library's test cases a connection and fresh logs."""

    bridge: Bridge

    @pytest.fixture(autouse=True)
    def _give_bridge(self, bridge: Bridge) -> None:
        self.bridge = bridge

    def log(self) -> RecordLog:
        """Return a log nobody has written."""
        return RecordLog(new_id())


class TestAggregateRecorder(WithBridge, library.AggregateRecorderTestCase):
    """The library's contract of an aggregate recorder."""

    @override
    def create_recorder(self) -> JetStreamAggregateRecorder:
        return JetStreamAggregateRecorder(self.bridge, self.log())


class TestApplicationRecorder(WithBridge, library.ApplicationRecorderTestCase):
    """The library's contract of an application recorder."""

    @override
    def create_recorder(self) -> JetStreamApplicationRecorder:
        return JetStreamApplicationRecorder(self.bridge, self.log())

    def test_insert_subscribe(self) -> None:
        """A subscription gives what is recorded, then what is recorded later, until it stops."""
        super().optional_test_insert_subscribe()


class TestNonInterleaving(WithBridge, library.NonInterleavingNotificationIDsBaseCase):
    """Two inserts of 1000 events never mix."""

    @override
    def create_recorder(self) -> JetStreamApplicationRecorder:
        return JetStreamApplicationRecorder(self.bridge, self.log())


class TestTrackingRecorder(WithBridge, library.TrackingRecorderTestCase):
    """The library's contract of a tracking recorder."""

    @override
    def create_recorder(self) -> JetStreamTrackingRecorder:
        return JetStreamTrackingRecorder(self.bridge, self.log())


class TestProcessRecorder(WithBridge, library.ProcessRecorderTestCase):
    """The library's contract of a process recorder."""

    @override
    def create_recorder(self) -> JetStreamProcessRecorder:
        return JetStreamProcessRecorder(self.bridge, self.log())


class CustomTrackingRecorder(JetStreamTrackingRecorder):
    """What an application may put in place of ours."""


class TestFactory(library.InfrastructureFactoryTestCase[JetStreamFactory]):
    """The library's contract of a factory."""

    @pytest.fixture(autouse=True)
    def _environment(self, nats_server: Server) -> None:
        self.env = Environment(
            new_id(), {"PERSISTENCE_MODULE": "events.recorders", "NATS_URL": nats_server.url}
        )

    @override
    def expected_factory_class(self) -> type[JetStreamFactory]:
        return JetStreamFactory

    @override
    def expected_aggregate_recorder_class(self) -> type[JetStreamAggregateRecorder]:
        return JetStreamAggregateRecorder

    @override
    def expected_application_recorder_class(self) -> type[JetStreamApplicationRecorder]:
        return JetStreamApplicationRecorder

    @override
    def expected_tracking_recorder_class(self) -> type[JetStreamTrackingRecorder]:
        return JetStreamTrackingRecorder

    @override
    def tracking_recorder_subclass(self) -> type[JetStreamTrackingRecorder]:
        return CustomTrackingRecorder

    @override
    def expected_process_recorder_class(self) -> type[JetStreamProcessRecorder]:
        return JetStreamProcessRecorder


def stored(originator_id: UUID | str, version: int) -> StoredEvent:
    """Return an event."""
    return StoredEvent(originator_id, version, "topic", b"state")


def test_racing_writers_cannot_both_store_a_version(bridge: Bridge) -> None:
    """Of ten threads that insert the same version, exactly one succeeds."""
    recorder = JetStreamApplicationRecorder(bridge, RecordLog(new_id()))
    originator = UUID(int=1)
    outcomes: list[str] = []
    start = threading.Barrier(10)

    def insert() -> None:
        start.wait()
        try:
            recorder.insert_events([stored(originator, 1), stored(originator, 2)])
            outcomes.append("stored")
        except IntegrityError:
            outcomes.append("refused")

    threads = [threading.Thread(target=insert) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["refused"] * 9 + ["stored"]
    assert len(recorder.select_events(originator)) == 2


def test_originators_may_be_any_text(bridge: Bridge) -> None:
    """Dots, spaces and wildcards in an originator id survive and never mix originators."""
    recorder = JetStreamApplicationRecorder(bridge, RecordLog(new_id()))
    names = ["a.b", "a", "*", ">", "ä ö", "a b"]
    for name in names:
        recorder.insert_events([stored(name, 1)])
    assert [[stored(name, 1)] for name in names] == [recorder.select_events(n) for n in names]
    assert names == [item.originator_id for item in recorder.select_notifications(None, 99)]


def test_too_many_events_are_refused(bridge: Bridge) -> None:
    """1001 events at once are more than an atomic batch holds."""
    recorder = JetStreamApplicationRecorder(bridge, RecordLog(new_id()))
    with pytest.raises(DataError):
        recorder.insert_events([stored("a", version) for version in range(1001)])


def test_missing_stream_is_an_operational_error(bridge: Bridge) -> None:
    """Without its stream a recorder says so in the library's own words."""
    recorder = JetStreamApplicationRecorder(bridge, RecordLog(new_id(), create=False))
    with pytest.raises(OperationalError):
        recorder.insert_events([stored("a", 1)])


def test_own_loop_is_refused(bridge: Bridge) -> None:
    """A call from the private loop would wait for itself; it is an error that says so."""
    recorder = JetStreamApplicationRecorder(bridge, RecordLog(new_id()))

    async def on_the_loop(_: Nats) -> None:
        recorder.max_notification_id()

    with pytest.raises(ProgrammingError, match="own loop"):
        bridge.run(on_the_loop)


def test_close_is_final_and_repeatable(nats_server: Server) -> None:
    """After close the thread is gone, a second close does nothing, calls are refused."""
    before = threading.active_count()
    made = Bridge(nats_server.url)
    recorder = JetStreamApplicationRecorder(made, RecordLog(new_id()))
    made.close()
    made.close()
    assert before == threading.active_count()
    with pytest.raises(InterfaceError):
        recorder.max_notification_id()


def test_close_ends_a_waiting_subscription(nats_server: Server) -> None:
    """A reader blocked on a subscription gets an error when the bridge closes."""
    made = Bridge(nats_server.url)
    recorder = JetStreamApplicationRecorder(made, RecordLog(new_id()))
    with recorder.subscribe() as subscription:
        closer = threading.Thread(target=made.close)
        closer.start()
        with pytest.raises(InterfaceError):
            next(subscription)
    closer.join()


def test_no_server_is_an_operational_error() -> None:
    """Nobody listens: the constructor fails and leaves no thread behind."""
    before = threading.active_count()
    with pytest.raises(OperationalError):
        Bridge("nats://127.0.0.1:1", timeout_s=1)
    assert before == threading.active_count()


class Dog(Aggregate):
    """An aggregate in the library's own style."""

    @event("Registered")
    def __init__(self, name: str) -> None:
        self.name = name
        self.tricks: list[str] = []

    @event("TrickAdded")
    def add_trick(self, trick: str) -> None:
        """Learn."""
        self.tricks.append(trick)


def test_application_runs_on_the_recorders(nats_server: Server) -> None:
    """An unchanged application of the library saves, snapshots, reads and selects."""
    env = {
        "PERSISTENCE_MODULE": "events.recorders",
        "NATS_URL": nats_server.url,
        "IS_SNAPSHOTTING_ENABLED": "y",
    }

    class Kennel(Application[UUID]):
        name = new_id()

    with Kennel(env) as app:
        dog = Dog("Fido")
        dog.add_trick("roll")
        app.save(dog)
        app.take_snapshot(dog.id)
        again: Dog = app.repository.get(dog.id)
        again.add_trick("sit")
        app.save(again)
        dog.add_trick("lost")
        with pytest.raises(IntegrityError):
            app.save(dog)
        assert ["roll", "sit"] == app.repository.get(dog.id).tricks
        assert [1, 2, 3] == [item.id for item in app.notification_log.select(1, 10)]
    with Kennel(env) as app:
        assert ["roll", "sit"] == app.repository.get(dog.id).tricks


async def write_run(nc: Nats, key: RunKey, count: int) -> tuple[JetStreamEventStore, Head]:
    """Write a run of `count` commits."""
    await ensure(nc, StreamLimits(events_bytes_max=2**28, blobs_bytes_max=2**28))
    store = JetStreamEventStore(nc, JetStreamKeyRing(nc.jetstream(), bytes(32)))
    started = RunStarted(
        at=1.0,
        workflow="w",
        version=1,
        digest="d",
        plan=Plan(nodes=(), outputs=()),
        inputs={"text": "hi"},
        inputs_digest="i",
        correlation_id="c",
    )
    state, head = fold([started]), EMPTY
    assert state is not None
    for number in range(count):
        events = [RunCancelled(at=2.0)] if number else [started]
        head = await store.append(Append(key, new_id(), events, head, state))
    return store, head


async def test_mesh_log_is_read(nc: Nats, nats_server: Server) -> None:
    """Commits appear with their versions, sequences and stored bytes; the codec reads them."""
    key = RunKey("default", new_id())
    store, head = await write_run(nc, key, 3)

    def read() -> tuple[Any, ...]:
        made = Bridge(nats_server.url)
        try:
            recorder = EventLogRecorder(made)
            name = f"{key.tenant}.{key.run_id}"
            return (
                recorder.select_events(name),
                recorder.select_events(name, gt=1, desc=True, limit=1),
                recorder.select_notifications(head.sequence, 10),
                recorder.select_notifications(None, 10, topics=["other"]),
                recorder.max_notification_id(),
                refused(recorder),
            )
        finally:
            made.close()

    events, newest, notes, others, last, refusal = await asyncio.to_thread(read)
    assert [1, 2, 3] == [item.originator_version for item in events]
    assert [3] == [item.originator_version for item in newest]
    assert (head.sequence, COMMIT_TOPIC) == (notes[0].id, notes[0].topic)
    assert ([], head.sequence, NotSupportedError) == (others, last, refusal)
    mapper = CommitMapper(await store._keys.cipher(key.tenant))
    assert (await store.load(key)).commits == tuple(mapper.to_domain_event(e) for e in events)


def refused(recorder: EventLogRecorder) -> type[Exception]:
    """Return how an insert is refused."""
    with pytest.raises(NotSupportedError) as caught:
        recorder.insert_events([stored("default.a", 1)])
    return caught.type


async def test_mesh_log_is_followed(nc: Nats, nats_server: Server) -> None:
    """A subscription sees commits appended after it began, and no tombstones."""
    old, new = RunKey("default", new_id()), RunKey("default", new_id())
    store, head = await write_run(nc, old, 2)
    made = await asyncio.to_thread(Bridge, nats_server.url)
    try:
        recorder = EventLogRecorder(made)
        with await asyncio.to_thread(recorder.subscribe, head.sequence) as subscription:
            await store.retire(old, head, 3.0)
            _, last = await write_run(nc, new, 1)
            note = await asyncio.to_thread(next, subscription)
            assert (f"default.{new.run_id}", last.sequence) == (note.originator_id, note.id)
    finally:
        await asyncio.to_thread(made.close)
