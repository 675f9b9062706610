"""Time travel over real processes: bundles, replay, forks, and another mesh."""

import io
import json
import os
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import nats
import pytest

from clawdbot import AsyncClient, Client, Run, WorkflowBuilder
from clawdbot.cli.output import ExitCode
from schemas.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from schemas.values import Binary
from schemas.workflow import Deployment
from tests.integration.conftest import Running
from tests.integration.test_cli import CLAWDBOT, clawdbot
from tests.support.mesh import Mesh
from tests.support.nats import NatsServer, server_binary
from tests.support.wait import until_sync


pytestmark = pytest.mark.nats
OTHER_KEY = "BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBA="


@pytest.fixture(scope="module")
def url(running: Running) -> str:
    """The first gateway, with a chain and its branches, and a workflow with a loop."""
    chain = (
        WorkflowBuilder()
        .add_node("greet", template="Hello, {{input.name}}!")
        .add_node("shout", template="{{greet.text}} {{greet.text}}")
        .add_node("aside", template="by the way, {{input.topic}}")
        .connect("greet", "shout")
    )
    body = WorkflowBuilder().add_node("say", template="{{input.word}}")
    loop = (
        WorkflowBuilder()
        .add_node("first", template="{{input.name}}")
        .foreach("each", '["a", "b", "c"]', body, as_="word")
        .add_node("last", template="{{each.count}} words")
        .connect("first", "each")
        .connect("each", "last")
    )
    with Client(running.url()) as client:
        chain.deploy("travel_chain", client=client)
        loop.deploy("travel_loop", client=client)
    return running.url()


@pytest.fixture(scope="module")
def chain(url: str) -> Run:
    """A finished run of the chain."""
    with Client(url) as client:
        return client.run("travel_chain", {"name": "Ada", "topic": "rain"})


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Another mesh: another server, another master key."""
    if server_binary() is None:
        pytest.skip("there is no nats-server here")
    folder = tmp_path_factory.mktemp("elsewhere")
    with NatsServer(folder) as server:
        mesh = Mesh(folder / "services", server.url, {"master_key": OTHER_KEY})
        mesh.add_core(modalities=("text",))
        mesh.add("gateway-0", "services.gateway", http_port="0")
        try:
            mesh.start()
            yield f"http://127.0.0.1:{mesh.services['gateway-0'].fact('listening', 'port')}"
        finally:
            mesh.stop()


def outputs(run: Run) -> dict[str, object]:
    """Return a run's texts by node."""
    assert run.status == "completed", run.error
    return {node.id: (node.outputs or {}).get("text") for node in run.nodes}


def test_a_run_travels_as_a_file(chain: Run, url: str, elsewhere: str, tmp_path: Path) -> None:
    """Export, replay without a mesh, import into another mesh: every time the same run."""
    file = tmp_path / "run.clawdbot"
    done = clawdbot("export", chain.run_id, "-o", str(file), url=url)
    assert done.returncode == 0, done.stderr
    assert b"in clear" in done.stdout
    replayed = clawdbot("replay", str(file), "--json")  # nobody listens at its address
    assert replayed.returncode == 0, replayed.stderr
    assert chain.model_dump(mode="json") == json.loads(replayed.stdout)
    taken = clawdbot("import", str(file), "--json", url=elsewhere)
    assert taken.returncode == 0, taken.stderr
    with Client(elsewhere) as client:
        assert chain == client.get(chain.run_id)
        assert [chain.run_id] == [run.run_id for run in client.runs(status="completed").runs]
        before = client.events(chain.run_id)
        assert chain == client.import_bundle(file)
        assert before == client.events(chain.run_id)


def test_bundles_hold_blobs_and_other_histories_are_refused(url: str, elsewhere: str) -> None:
    """A large input goes along; the same id with another log is an error; a retold one too."""
    blob = Binary(media_type="application/octet-stream", data=bytes(range(256)) * 512)
    with Client(url) as client:
        run = client.run("travel_chain", {"name": "Eve", "topic": "snow", "extra": blob.data})
        bundle, thin = client.export(run.run_id), client.export(run.run_id, blobs=False)
    with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
        names = archive.namelist()
        assert {"manifest.json", "commits.ndjson", "definition.json"} <= set(names)
        sha256 = next(name for name in names if name.startswith("blobs/")).removeprefix("blobs/")
        assert blob.data == archive.read(f"blobs/{sha256}")
    assert len(thin) < len(bundle)
    with Client(elsewhere) as client:
        client.import_bundle(bundle)
        reference = client.get(run.run_id).inputs["extra"]["$blob"]
        assert sha256 == reference["sha256"]
        forged = repacked(bundle, lambda line: line.replace(b"Hello", b"Howdy"))
        with pytest.raises(InvalidArgument, match="cannot be used"):
            client.import_bundle(forged)


def repacked(bundle: bytes, change: "object") -> bytes:
    """Return a bundle whose commits were changed."""
    assert callable(change)
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(bundle)) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, change(data) if name == "commits.ndjson" else data)
    return file.getvalue()


def test_a_fork_runs_only_what_is_downstream(url: str, chain: Run) -> None:
    """A changed template runs its node and what follows; the rest cites the first run."""
    done = clawdbot(
        "fork", chain.run_id, "--set", "shout.template={{greet.text}}?!", "--json", url=url
    )
    assert done.returncode == 0, done.stderr
    fork = Run.model_validate_json(done.stdout)
    assert outputs(fork) == {
        "greet": "Hello, Ada!",
        "shout": "Hello, Ada!?!",
        "aside": "by the way, rain",
    }
    assert {"greet", "aside"} == {node.id for node in fork.nodes if node.kept_from is not None}
    assert fork.forked_from is not None
    assert (chain.run_id, chain.events) == (fork.forked_from.run_id, fork.forked_from.at)
    with Client(url) as client:
        events = client.events(fork.run_id)
        kinds = [(event.type, event.data.get("node_id")) for event in events]
        assert ("NodeScheduled", "greet") not in kinds
        cited = next(event for event in events if event.type == "NodeKept")
        original = client.events(chain.run_id)[cited.data["event"] - 1]
        assert ("NodeCompleted", cited.data["outputs"]) == (original.type, original.data["outputs"])


def test_forks_change_inputs_begin_earlier_and_fork_forks(url: str, chain: Run) -> None:
    """Only nodes that use a changed input run; at 1 nothing is kept; changes add up."""
    with Client(url) as client:
        rainy = client.fork(chain.run_id, changes={"inputs.topic": "sun"})
        assert "by the way, sun" == outputs(rainy)["aside"]
        assert {"greet", "shout"} == {node.id for node in rainy.nodes if node.kept_from}
        afresh = client.fork(chain.run_id, at=1)
        assert outputs(afresh) == outputs(chain)
        assert not any(node.kept_from for node in afresh.nodes)
        again = client.fork(rainy.run_id, changes={"shout.template": "{{greet.text}}!!"})
        assert ("by the way, sun", "Hello, Ada!!!") == (
            outputs(again)["aside"],
            outputs(again)["shout"],
        )
        greet = next(node for node in again.nodes if node.id == "greet")
        assert greet.kept_from is not None
        assert chain.run_id == greet.kept_from.run_id
        same = client.fork(chain.run_id, idempotency_key="fork-1")
        assert same.run_id == client.fork(chain.run_id, idempotency_key="fork-1").run_id
        with pytest.raises(AlreadyExists):
            client.fork(chain.run_id, at=2, idempotency_key="fork-1")


def test_a_loop_is_kept_whole_or_run_whole(url: str) -> None:
    """A change inside a foreach runs all its iterations; one behind it none."""
    with Client(url) as client:
        run = client.run("travel_loop", {"name": "x"})
        inside = client.fork(run.run_id, changes={"each/say.template": "<{{input.word}}>"})
        assert 3 == sum(node.id.startswith("each[") for node in inside.nodes)
        assert "<a>" == client.get(inside.run_id).output("each.items")[0]["text"]
        behind = client.fork(run.run_id, changes={"last.template": "{{each.count}}!"})
        assert "3!" == outputs(behind)["last"]
        assert {"first", "each"} == {node.id for node in behind.nodes if node.kept_from}


def test_diff_says_where_two_runs_part(url: str, chain: Run, tmp_path: Path) -> None:
    """Runs and files alike; the exit status tells whether they are the same."""
    file = tmp_path / "chain.clawdbot"
    assert 0 == clawdbot("export", chain.run_id, "-o", str(file), url=url).returncode
    done = clawdbot("diff", chain.run_id, str(file), url=url)
    assert (0, True) == (done.returncode, b"the same" in done.stdout), done.stdout
    with Client(url) as client:
        fork = client.fork(chain.run_id, changes={"shout.template": "{{greet.text}} ..."})
    done = clawdbot("diff", str(file), fork.run_id, url=url)
    assert 1 == done.returncode
    for words in (b"first node that differs: shout", b"text (text, similarity 0.", b"kept"):
        assert words in done.stdout, done.stdout.decode()
    found = json.loads(clawdbot("diff", str(file), fork.run_id, "--json", url=url).stdout)
    assert ("shout", False) == (found["first"], found["same"])


def test_regress_forks_the_last_runs(url: str) -> None:
    """Agreement and latency over recorded runs; forks are no recorded runs."""
    flow = (
        WorkflowBuilder()
        .add_node("say", model="echo", inputs={"text": "input.text"})
        .add_node("end", template="{{say.text}}!")
        .connect("say", "end")
    )
    with Client(url) as client:
        flow.deploy("travel_regress", client=client)
        runs = [client.run("travel_regress", {"text": f"t{n}"}).run_id for n in range(5)]
    same = clawdbot("regress", "travel_regress", "--set", "say.timeout_s=9", "--json", url=url)
    assert same.returncode == 0, same.stderr
    found = json.loads(same.stdout)
    assert (5, 5, 5) == (found["runs"], found["compared"], found["agreed"])
    assert {"say", "end"} == {node["node"] for node in found["latency"]}
    other = ["regress", "travel_regress", "--set", "end.template={{say.text}}?", "--last", "3"]
    done = clawdbot(*other, "--json", url=url)
    assert 1 == done.returncode
    found = json.loads(done.stdout)
    assert (3, 0, [["end", 3]]) == (
        found["runs"],
        found["agreed"],
        [[node["node"], node["runs"]] for node in found["latency"]],
    )
    assert set(runs[-3:]) == {run for run, _ in found["differing"]}
    text = clawdbot(*other, url=url).stdout.decode()
    assert "agree 0 of 3" in text
    done = clawdbot("regress", "travel_regress", "--set", "ghost.model=echo", url=url)
    assert (1, True) == (done.returncode, b"no node 'ghost'" in done.stdout), done.stdout
    assert ExitCode.NOT_FOUND == clawdbot("regress", "ghost", url=url).returncode


async def test_the_client_for_asyncio_travels_too(url: str, chain: Run) -> None:
    """Export, import, fork, compare, regress."""
    async with AsyncClient(url) as client:
        bundle = await client.export(chain.run_id)
        assert chain == await client.import_bundle(bundle)
        fork = await client.fork(chain.run_id, changes={"aside.template": "x"})
        found = await client.compare(bundle, fork.run_id)
        assert "aside" == found.first
        summed = await client.regress("travel_chain", last=2, parallel=2)
        assert summed.runs == summed.agreed


def test_stepping_from_a_pipe(url: str, chain: Run) -> None:
    """Commands on stdin; each answers, and a wrong one is told."""
    commands = (
        "next\nbreak node=shout\ncontinue\nprint shout\nnonsense\nback\nprint inputs\n\nquit\n"
    )
    environment = {**os.environ, "CLAWDBOT_URL": url}  # noqa: TID251 - a child's
    done = subprocess.run(  # noqa: S603 - our own command
        [*CLAWDBOT, "replay", chain.run_id, "--step", "--json"],
        input=commands.encode(),
        capture_output=True,
        timeout=60,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert "RunStarted" == lines[0]["type"]
    assert {"id": "shout", "status": "scheduled"}.items() <= lines[-4].items()
    assert chain.inputs == lines[-1] == lines[-2]
    assert b"no command 'nonsense'" in done.stderr


def test_projections_are_what_the_log_says(url: str, chain: Run) -> None:
    """Index and statistics of both gateways equal those built anew, to the bit."""
    done = clawdbot("stats", "travel_chain", "--verify", "--json", url=url)
    assert done.returncode == 0, done.stdout
    *verdicts, found = [json.loads(line) for line in done.stdout.splitlines()]
    assert ["runs", "nodes"] == [verdict["name"] for verdict in verdicts]
    assert all(verdict["same"] and verdict["events"] for verdict in verdicts)
    nodes = {node["node"]: node for node in found["nodes"]}
    assert {"greet", "shout", "aside"} == set(nodes)
    assert nodes["greet"]["runs"] >= nodes["greet"]["completed"] > 0
    with Client(url) as client:
        before = client.statistics("travel_chain").nodes[0].runs
        client.fork(chain.run_id)
        after = client.statistics("travel_chain").nodes[0]
        assert (before + 1, True) == (after.runs, after.kept > 0)
        assert all(item.same for item in client.verify_projections())
    assert "greet" in clawdbot("stats", url=url).stdout.decode()


def test_an_imported_run_is_forked_where_its_workflow_is(
    url: str, elsewhere: str, tmp_path: Path
) -> None:
    """The bundle holds the workflow; deployed, its runs can be forked there too."""
    with Client(url) as client:
        run = client.run("travel_loop", {"name": "far"})
        bundle = client.export(run.run_id)
    with Client(elsewhere) as client:
        client.import_bundle(bundle)
        changes = {"last.template": "{{each.count}} far away"}
        with pytest.raises(FailedPrecondition, match="not deployed here"):
            client.fork(run.run_id, changes=changes)
        definition = tmp_path / "definition.json"
        with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
            definition.write_bytes(archive.read("definition.json"))
        assert 0 == clawdbot("deploy", str(definition), url=elsewhere).returncode
        fork = client.fork(run.run_id, changes=changes)
        assert "3 far away" == outputs(fork)["last"]
        assert {"first", "each"} == {node.id for node in fork.nodes if node.kept_from}


def test_a_fork_goes_on_with_another_version(url: str, chain: Run) -> None:
    """What the versions share is kept."""
    with Client(url) as client:
        definition = client.workflow("travel_chain", chain.version).definition.model_dump()
        definition["nodes"][1]["params"]["template"] = "{{greet.text}}, version two"
        view = client.deploy(
            Deployment.model_validate({"name": "travel_chain", "definition": definition})
        )
        fork = client.fork(chain.run_id, version=view.version)
        assert "Hello, Ada!, version two" == outputs(fork)["shout"]
        assert {"greet", "aside"} == {node.id for node in fork.nodes if node.kept_from}
        assert view.version == fork.version


async def test_a_fork_straight_from_nats(running: Running, chain: Run) -> None:
    """A header and a JSON body; one that cannot be is recorded as rejected."""
    nc = await nats.connect(running.server.url)
    try:
        for run_id, parent in (("nats-fork", chain.run_id), ("nats-no-fork", "ghost")):
            await nc.jetstream().publish(
                "clawdbot.v1.default.submit.travel_chain",
                b'{"changes": {"inputs.topic": "hail"}}',
                headers={"Clawdbot-Run-Id": run_id, "Clawdbot-Fork-Of": parent},
            )
    finally:
        await nc.close()
    with Client(running.url()) as client:
        for run_id, status in (("nats-fork", "completed"), ("nats-no-fork", "rejected")):
            until_sync(lambda: status_of(client, run_id) == status, timeout_s=20)  # noqa: B023
        assert "by the way, hail" == outputs(client.get("nats-fork"))["aside"]
        error = client.get("nats-no-fork").error
        assert error is not None
        assert "no run ghost" == error.message


def status_of(client: Client, run_id: str) -> str:
    """Return a run's status; empty while there is no such run."""
    try:
        return client.get(run_id).status
    except NotFound:
        return ""


def test_what_cannot_be_forked_or_exported_is_told(url: str, chain: Run) -> None:
    """Unknown runs, nodes, inputs, models, events; each error names what is wrong."""
    with Client(url) as client:
        for changes, field in (
            ({"ghost.model": "echo"}, "changes.ghost.model"),
            ({"shout.colour": "red"}, "changes.shout.colour"),
            ({"nonsense": 1}, "changes.nonsense"),
            ({"inputs.audio": {"$binary": {"media_type": "x"}}}, "inputs.audio.$binary.media_type"),
        ):
            with pytest.raises(InvalidArgument) as told:
                client.fork(chain.run_id, changes=changes)
            assert field == told.value.field
        with pytest.raises(InvalidArgument, match="events"):
            client.fork(chain.run_id, at=10_000)
        with pytest.raises(NotFound):
            client.fork("ghost")
        with pytest.raises(NotFound):
            client.fork(chain.run_id, version=99)
        with pytest.raises(NotFound):
            client.export("ghost")
        with pytest.raises(InvalidArgument, match="bundle"):
            client.import_bundle(b"no bundle")
    for words, code in (
        (["export", "ghost"], ExitCode.NOT_FOUND),
        (["import", "/nowhere"], ExitCode.INVALID),
        (["fork", chain.run_id, "--set", "x"], ExitCode.INVALID),
        (["replay", chain.run_id, "--break", "event=Ghost"], ExitCode.INVALID),
        (["replay", chain.run_id, "--until", "9999"], ExitCode.INVALID),
    ):
        done = clawdbot(*words, url=url)
        assert code == done.returncode, done.stderr


def test_a_run_that_is_not_over_is_not_imported(url: str, elsewhere: str) -> None:
    """Two meshes would go on with it; a replay of its file works."""
    waiting = WorkflowBuilder().signal("approved")
    with Client(url) as client:
        waiting.deploy("travel_waiting", client=client)
        run = client.run("travel_waiting", wait_s=0)
        bundle = client.export(run.run_id)
        client.cancel(run.run_id)
    with Client(elsewhere) as client, pytest.raises(FailedPrecondition, match="is over"):
        client.import_bundle(bundle)
