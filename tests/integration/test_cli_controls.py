"""Steering a run from a shell: what it says, and what its exit status means."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from clawdbot import Client, Run, WorkflowBuilder
from clawdbot.cli.output import ExitCode
from tests.integration.conftest import Running
from tests.integration.test_cli import clawdbot
from tests.support.wait import until_sync


pytestmark = pytest.mark.nats


@pytest.fixture(scope="module")
def url(running: Running) -> str:
    """The first gateway, with workflows that wait, and one that stops at a failure."""
    body = WorkflowBuilder().add_node("say", model="echo", inputs={"text": "input.word"})
    waiting = (
        WorkflowBuilder()
        .foreach("each", '["a", "b"]', body, as_="word")
        .switch("route", cases={"yes": "each.count == 0"})
        .add_node("never", model="echo", inputs={"text": '= "x"'})
        .signal("approved")
        .connect("each", "route")
        .connect("route", "never", case="yes")
        .connect("route", "approved", case="default")
    )
    mended = WorkflowBuilder(on_failure="pause").add_node("a", model="echo")
    with Client(running.url()) as client:
        waiting.deploy("cli_waiting", client=client)
        mended.deploy("cli_mended", client=client)
    return running.url()


def begun(url: str, workflow: str, **inputs: object) -> str:
    """Start a run; return its id."""
    words = [f"{name}:={json.dumps(value)}" for name, value in inputs.items()]
    options = [word for item in words for word in ("-i", item)]
    done = clawdbot("run", workflow, "--wait", "0", "--json", *options, url=url)
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["run_id"])


def becomes(url: str, run_id: str, what: Callable[[Run], object]) -> None:
    """Wait until a run is in some state."""
    with Client(url) as client:
        until_sync(lambda: what(client.get(run_id)), timeout_s=20)


def status(wanted: str, run: Run) -> bool:
    """Tell whether a run has a status."""
    return run.status == wanted


def test_pause_resume_signal_and_what_show_says(url: str) -> None:
    """Each command says what it asked for; `show` nests the steps and tells the skipped one."""
    run_id = begun(url, "cli_waiting")
    becomes(url, run_id, lambda run: any(node.id == "approved" for node in run.nodes))
    done = clawdbot("pause", run_id, "--reason", "look", url=url)
    assert (0, f"pause: run {run_id} was told\n") == (done.returncode, done.stdout.decode())
    becomes(url, run_id, partial(status, "paused"))
    assert json.loads(clawdbot("resume", run_id, "--json", url=url).stdout) == {
        "run_id": run_id,
        "action": "resume",
    }
    becomes(url, run_id, partial(status, "running"))
    sent = clawdbot("signal", run_id, "approved", "-p", '{"by": "eve"}', "--id", "s1", url=url)
    assert sent.returncode == 0, sent.stderr
    becomes(url, run_id, partial(status, "completed"))
    text = clawdbot("show", run_id, url=url).stdout.decode()
    steps = [line.strip("│").partition("│")[0].rstrip() for line in text.splitlines()]
    assert ["   [0] say", "   [1] say"] == [step for step in steps if "say" in step]
    assert "skipped" in next(line for line in text.splitlines() if "never" in line)
    events = clawdbot("replay", run_id, url=url).stdout.decode()
    for word in ("NodeOpened      each", "ScopeOpened     each[1]", "SignalReceived  approved"):
        assert word in events


def test_mending_a_run_that_paused_at_a_failure(url: str) -> None:
    """Retry fails again, skip puts outputs in its place."""
    run_id = begun(url, "cli_mended", text="x" * 20_000)
    becomes(url, run_id, partial(status, "paused"))
    assert clawdbot("retry", run_id, "a", url=url).returncode == 0
    becomes(url, run_id, lambda run: run.status == "paused" and run.nodes[0].attempt == 2)
    done = clawdbot("skip", run_id, "a", "-o", "text=by hand", "--reason", "long", url=url)
    assert done.returncode == 0, done.stderr
    becomes(url, run_id, partial(status, "completed"))
    shown = json.loads(clawdbot("show", run_id, "--json", url=url).stdout)
    assert shown["outputs"] == {"a": {"text": "by hand"}}


def test_what_cannot_be_done_is_one_line_and_a_status(url: str, tmp_path: Path) -> None:
    """Unknown run or node, a run that is over, a payload that is no JSON."""
    run_id = begun(url, "cli_waiting")
    becomes(url, run_id, lambda run: any(node.id == "approved" for node in run.nodes))
    for words, code, text in (
        (["skip", run_id, "ghost"], ExitCode.NOT_FOUND, "no node 'ghost' is under way"),
        (["retry", run_id, "approved"], ExitCode.INVALID, "is scheduled"),
        (["signal", run_id, "approved", "-p", "{"], ExitCode.INVALID, "not JSON"),
        (["skip", run_id, "each", "-o", "x"], ExitCode.INVALID, "NAME=TEXT"),
        (["pause", "ghost"], ExitCode.NOT_FOUND, "no run ghost"),
    ):
        done = clawdbot(*words, url=url)
        assert (code, True) == (done.returncode, text in done.stderr.decode()), done.stderr
    assert clawdbot("cancel", run_id, url=url).returncode == 0
    becomes(url, run_id, partial(status, "cancelled"))
    done = clawdbot("resume", run_id, url=url)
    assert (ExitCode.INVALID, b"the run is over") == (done.returncode, done.stderr[7:22])
    assert clawdbot("cancel", run_id, url=url).returncode == 0
