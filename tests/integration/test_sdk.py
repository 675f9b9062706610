"""Client and AsyncClient against a whole mesh, and the examples, which are made of them."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from clawdbot import AsyncClient, Binary, BlobRef, Client, WorkflowBuilder
from schemas.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from schemas.workflow import Deployment
from tests.integration.conftest import Running


pytestmark = pytest.mark.nats
ROOT = Path(__file__).resolve().parents[2]
WEATHER = ROOT / "examples" / "voice_assistant" / "weather.wav"


@pytest.fixture
def client(running: Running) -> Iterator[Client]:
    """A client of the first gateway."""
    with Client(running.url()) as client:
        yield client


def _echo(client: Client, name: str) -> None:
    WorkflowBuilder().add_node("a", model="echo").deploy(name, replicas=3, client=client)


def test_a_run_from_deploy_to_replay(client: Client) -> None:
    """Every operation once, with typed results."""
    _echo(client, "sdk")
    assert client.workflow("sdk").replicas == 3
    assert "sdk" in [workflow.name for workflow in client.workflows()]
    run = client.run("sdk", {"text": "hi"})
    assert run.over
    assert run.output("a.text") == run.single_output() == "hi"
    assert client.get(run.run_id) == run
    assert client.replay(run.run_id) == run
    assert client.replay(run.run_id, until=1).status == "running"
    types = [event.type for event in client.events(run.run_id)]
    assert types == [event.type for event in client.follow(run.run_id)]
    assert [event.id for event in client.follow(run.run_id, after=2)] == list(
        range(3, len(types) + 1)
    )
    assert [] == list(client.follow(run.run_id, after=len(types)))
    assert {model.name for model in client.models()} >= {"echo", "whisper-tiny"}
    assert client.run("sdk", {"text": "x"}, wait_s=0).status in {"running", "completed"}


def test_bytes_go_in_and_come_out(client: Client) -> None:
    """A file, bytes, a blob; the answer is fetched whatever it is."""
    WorkflowBuilder().add_node("tts", model="espeak-ng").deploy("speak", client=client)
    WorkflowBuilder().add_node("asr", model="pocketsphinx").deploy("hear", client=client)
    spoken = client.run("speak", {"text": "this is a rather long sentence " * 4})
    audio = spoken.output("tts.audio")
    assert isinstance(audio, BlobRef)
    data = client.fetch(audio)
    assert data[:4] == b"RIFF"
    small = WEATHER.read_bytes()
    for value in (WEATHER, small, Binary(media_type="audio/wav", data=small), data, audio):
        assert client.run("hear", {"audio": value}).status == "completed"


def test_errors_are_one_tree(client: Client) -> None:
    """Of the kind the server means, with the field it names."""
    _echo(client, "sdk")
    with pytest.raises(NotFound, match="ghost"):
        client.get("ghost")
    with pytest.raises(InvalidArgument) as refused:
        client.run("sdk", {"sound": "x"})
    assert refused.value.field == "inputs.sound"
    with pytest.raises(InvalidArgument, match="cannot read"):
        client.run("sdk", {"text": Path("nowhere.txt")})
    with pytest.raises(InvalidArgument, match="serializable") as unsendable:
        client.run("sdk", {"text": object()})
    assert unsendable.value.field == "inputs.text"
    with pytest.raises(InvalidArgument, match="not str"):
        client.fetch("text")  # type: ignore[arg-type]
    client.run("sdk", {"text": "a"}, idempotency_key="once")
    with pytest.raises(AlreadyExists):
        client.run("sdk", {"text": "b"}, idempotency_key="once")
    with pytest.raises(InvalidArgument) as unknown:
        WorkflowBuilder().add_node("a", model="gpt-9").deploy("x", client=client)
    assert unknown.value.field == "definition.nodes[0].params.model"
    with pytest.raises(NotFound, match=r"there are: a\.text"):
        client.run("sdk", {"text": "a"}).output("b.text")


def test_nobody_there_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """And how to mend it."""
    monkeypatch.setattr("clawdbot.protocol.ATTEMPTS_MAX", 1)
    with Client("http://127.0.0.1:9") as nobody, pytest.raises(Unavailable, match="clawdbot up"):
        nobody.runs()
    with pytest.raises(InvalidArgument, match="http://localhost:8080"):
        Client("localhost:8080")


async def test_the_async_client_does_the_same(running: Running) -> None:
    """Deploy, run, follow, replay, blobs."""
    definition = WorkflowBuilder().add_node("a", model="echo").definition()
    async with AsyncClient(running.url()) as client:
        await client.deploy(Deployment(name="async", definition=definition))
        run = await client.run("async", {"text": "hi"})
        assert run.output("a.text") == "hi"
        assert [event.id async for event in client.follow(run.run_id)] == list(
            range(1, run.events + 1)
        )
        assert [] == [event async for event in client.follow(run.run_id, after=run.events)]
        with pytest.raises(FailedPrecondition, match="completed"):
            await client.cancel(run.run_id)
        assert await client.replay(run.run_id) == await client.get(run.run_id) == run
        blob = await client.put_blob(b"bytes" * 20_000)
        assert await client.fetch(blob) == b"bytes" * 20_000
        page = await client.runs(workflow="async", limit=1)
        assert len(page.runs) <= 1
        with pytest.raises(NotFound):
            await client.get("ghost")


@pytest.mark.parametrize(
    ("example", "word"),
    [
        ("voice_assistant", "heard:  how is the weather"),
        ("media_analysis", "Team meeting"),
        ("recommendation", "1. A book of seasonal vegetable recipes"),
        ("control_flow.switch", "-> Doing weather. (skipped: ask)"),
        ("control_flow.loop", "hello!!!!! after 5 iterations"),
        ("control_flow.foreach", "of 23 lines"),
        ("control_flow.try_catch", "caught INVALID_ARGUMENT, finally ran: True"),
        ("control_flow.saga", "failed; released room 12, cancelled flight 7"),
        ("control_flow.sub_workflow", "['Hello, Ada!', 'Hello, Grace!']"),
        ("control_flow.dynamic", "steps: one two three"),
        ("control_flow.timers", "gave up waiting after"),
        ("control_flow.approval", "Eve decided"),
        ("control_flow.events", "heard of a book"),
        ("control_flow.http", "status 200, application/json"),
        ("control_flow.policies", "understand was remembered, queued for Ada"),
        ("control_flow.alternatives", "default/echo: edge/echo was tried"),
    ],
)
def test_the_examples_run_with_one_command(
    running: Running, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, example: str, word: str
) -> None:
    """As their READMEs say."""
    monkeypatch.setenv("CLAWDBOT_URL", running.url())
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done = subprocess.run(  # noqa: S603 - our own example
        [sys.executable, "-m", f"examples.{example}"],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert word in done.stdout
