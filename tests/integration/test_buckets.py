"""What lies in the key-value buckets, read by many at once."""

import asyncio

import pytest
from nats.aio.client import Client as Nats
from nats.js.kv import KeyValue

from events.buckets import entries
from events.definitions import DefinitionStore
from events.models import FRESH_S, ModelDirectory, Offer, WorkerCard
from events.streams import CARD_TTL_S, DEFINITIONS, MODELS, StreamLimits, ensure
from schemas.ids import DEFAULT_TENANT
from tests.support.workflows import deploy, echo_chain


pytestmark = pytest.mark.nats
READERS = 64


@pytest.fixture
async def bucket(nc: Nats) -> KeyValue:
    """The MODELS bucket, empty."""
    await ensure(nc, StreamLimits())
    found = await nc.jetstream().key_value(MODELS)
    for key in await entries(nc.jetstream(), MODELS):
        await found.purge(key)
    return found


def card(worker: str, at: float) -> WorkerCard:
    """Return the card of a worker with one model."""
    offers = (Offer(model="echo", served_by="echo"),)
    return WorkerCard(worker=worker, modality="text", offers=offers, at=at)


async def test_whoever_lists_workflows_sees_them_all(nc: Nats) -> None:
    """However many ask at once; a list that lacks some would stop their workers."""
    await ensure(nc, StreamLimits())
    js = nc.jetstream()
    names = ["bucket_a", "bucket_b", "bucket_c"]
    for name in names:
        await deploy(js, name, echo_chain(1))
    store = DefinitionStore(js)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(store.all_newest(DEFAULT_TENANT)) for _ in range(READERS)]
    found = [[workflow.name for workflow in task.result()] for task in tasks]
    assert [names] * READERS == found


async def test_a_deploy_that_died_half_way_leaves_no_wrong_version(nc: Nats) -> None:
    """Whatever lies under the version's own key, the newest pointer says what the version is."""
    await ensure(nc, StreamLimits())
    js = nc.jetstream()
    first = await deploy(js, "torn", echo_chain(1))
    definitions = await js.key_value(DEFINITIONS)
    other = first.model_copy(update={"digest": "another"})
    await definitions.put(f"{DEFAULT_TENANT}.torn.1", other.model_dump_json().encode())
    assert first == await DefinitionStore(js).version(DEFAULT_TENANT, "torn", 1)
    await deploy(js, "torn", echo_chain(2))
    assert first == await DefinitionStore(js).version(DEFAULT_TENANT, "torn", 1)


async def test_a_card_that_cannot_be_read_hides_no_other(nc: Nats, bucket: KeyValue) -> None:
    """Nor does one that was withdrawn; one that is too old counts as gone."""
    directory = ModelDirectory(nc.jetstream())
    for worker, at in (("a", 100.0), ("gone", 100.0), ("late", 100.0 - FRESH_S - 1), ("z", 100.0)):
        await directory.announce(card(worker, at))
    await directory.withdraw("gone")
    await bucket.put("newer", b'{"worker": 7}')
    await bucket.put("torn", b"{")
    assert ["a", "z"] == [found.worker for found in await directory.cards(100.0)]


async def test_cards_of_the_dead_do_not_pile_up(nc: Nats, bucket: KeyValue) -> None:
    """A worker that was killed withdraws nothing; the bucket forgets it."""
    assert CARD_TTL_S == (await bucket.status()).ttl
    assert {} == await entries(nc.jetstream(), MODELS)
