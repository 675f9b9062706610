"""A tenant that floods the queue of submissions does not keep others waiting."""

import signal
from collections.abc import Iterable

import nats
from nats.aio.client import Client as Nats

from events.express import Express, pub_ack
from events.jetstream import read_subject
from events.streams import COMMANDS, CONTROL_CONSUMER, EVENTS
from events.subjects import ROOT, every, run_key, submit
from schemas.ids import new_id
from schemas.messages import Header
from schemas.submission import pack_inputs
from services.orchestrator.app import CONTROLS_WAITING_MAX
from services.runtime import Outgoing
from services.together import TogetherBySubject
from tests.integration.conftest import Running
from tests.support.wait import until
from tests.support.workflows import deploy


FLOOD = 2000


def saying(priority: str = "normal") -> dict[str, object]:
    """Return a workflow that needs no worker."""
    return {
        "nodes": [{"id": "say", "type": "set", "params": {"values": {"text": "input.text"}}}],
        "priority": priority,
    }


async def together(nc: Nats, tenant: str, workflow: str, run_ids: Iterable[str]) -> None:
    """Submit runs as a gateway does, many in a message."""
    bundled = TogetherBySubject(await Express.of(nc), 32)
    headers = {Header.CONTENT_TYPE: "application/msgpack"}
    answers = [
        bundled.ask(
            Outgoing(
                submit(tenant, workflow),
                pack_inputs({"text": run_id}),
                headers | {Header.RUN_ID: run_id},
            )
        )
        for run_id in run_ids
    ]
    for answer in answers:
        pub_ack(await answer)


async def start(nc: Nats, tenant: str, workflow: str, run_id: str) -> None:
    """Submit a run."""
    headers = {Header.RUN_ID: run_id, Header.CONTENT_TYPE: "application/msgpack"}
    await nc.jetstream().publish(
        submit(tenant, workflow), pack_inputs({"text": run_id}), headers=headers
    )


async def begun(nc: Nats, tenant: str) -> dict[str, int]:
    """Return the runs of a tenant that began, and where in the log."""
    found: dict[str, int] = {}
    for item in await read_subject(nc, EVENTS, f"{ROOT}.{tenant}.event.>"):
        found.setdefault(run_key(item.subject).run_id, item.sequence)
    return found


async def test_single_submissions_go_past_a_flood(running: Running) -> None:
    """Another tenant's, and another workflow's, urgent or not; what is flooded is done as well."""
    loud, quiet = (f"{name}-{new_id().lower()[-8:]}" for name in ("loud", "quiet"))
    singles = {"quiet": (quiet, "flood"), "urgent": (loud, "urgent"), "other": (loud, "other")}
    orchestrator = running.mesh.services["orchestrator-0"]
    nc = await nats.connect(running.server.url)
    try:
        for tenant, name in {(loud, "flood"), *singles.values()}:
            document = saying("high" if name == "urgent" else "normal")
            await deploy(nc.jetstream(), name, document, tenant)
        orchestrator.signal(signal.SIGSTOP)
        await together(nc, loud, "flood", (f"flood-{number}" for number in range(FLOOD)))
        for run_id, (tenant, workflow) in singles.items():
            await start(nc, tenant, workflow, run_id)
        orchestrator.signal(signal.SIGCONT)

        async def drained() -> bool:
            info = await nc.jetstream().stream_info(COMMANDS, every("submit", "*"))
            return not info.state.subjects

        await until(drained, what="the end of the flood", timeout_s=90)
        of_loud, of_quiet = await begun(nc, loud), await begun(nc, quiet)
        assert FLOOD + 2 == len(of_loud)
        places = {**of_quiet, **{name: of_loud[name] for name in ("urgent", "other")}}
        flooded = [place for run_id, place in of_loud.items() if run_id not in singles]
        before = {name: sum(item < place for item in flooded) for name, place in places.items()}
        assert max(before.values()) < FLOOD / 2, before
    finally:
        orchestrator.signal(signal.SIGCONT)
        await nc.close()


async def test_controls_that_wait_for_their_runs_hold_up_no_others(running: Running) -> None:
    """The server delivers more than as many as may come for the runs of a flood."""
    nc = await nats.connect(running.server.url)
    try:
        info = await nc.jetstream().consumer_info(COMMANDS, CONTROL_CONSUMER)
        assert CONTROLS_WAITING_MAX == info.config.max_ack_pending
    finally:
        await nc.close()
