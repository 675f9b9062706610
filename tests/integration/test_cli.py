"""The command line as a user types it."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest

from clawdbot.cli.output import ExitCode
from tests.integration.conftest import Running
from tests.support.wait import until_sync


pytestmark = pytest.mark.nats
ROOT = Path(__file__).resolve().parents[2]
VOICE = ROOT / "examples" / "voice_assistant"
CLAWDBOT = [sys.executable, "-c", "from clawdbot.cli import main; main()"]


def clawdbot(
    *words: str, url: str = "http://127.0.0.1:9", timeout_s: float = 90
) -> subprocess.CompletedProcess[bytes]:
    """Run the command."""
    environment = {**os.environ, "CLAWDBOT_URL": url, "COLUMNS": "160"}  # noqa: TID251 - a child's
    return subprocess.run(  # noqa: S603 - our own command
        [*CLAWDBOT, *words],
        capture_output=True,
        timeout=timeout_s,
        check=False,
        cwd=ROOT,
        env=environment,
    )


@pytest.fixture(scope="module")
def url(running: Running) -> str:
    """The first gateway, with the voice assistant deployed."""
    url = running.url()
    done = clawdbot("deploy", str(VOICE / "workflow.json"), url=url)
    assert done.returncode == 0, done.stderr
    return url


@pytest.fixture(scope="module")
def run_id(url: str) -> str:
    """A run of the voice assistant."""
    audio = f"audio={VOICE / 'weather.wav'}"
    done = clawdbot("run", "voice_assistant", "--file", audio, "--json", url=url)
    assert done.returncode == ExitCode.OK, done.stderr
    return str(json.loads(done.stdout)["run_id"])


def test_a_run_shows_its_steps_and_saves_what_it_gives(url: str, tmp_path: Path) -> None:
    """A table for people, the spoken answer in a file."""
    answer = tmp_path / "answer.wav"
    done = clawdbot(
        "run",
        "voice_assistant",
        "--file",
        f"audio={VOICE / 'weather.wav'}",
        "--save",
        f"tts.audio={answer}",
        url=url,
    )
    text = done.stdout.decode()
    assert done.returncode == ExitCode.OK, done.stderr
    for word in ("asr", "pocketsphinx", "compute", "completed"):
        assert word in text
    assert answer.read_bytes()[:4] == b"RIFF"


def test_call_prints_nothing_but_the_output(url: str, tmp_path: Path) -> None:
    """Text as text, bytes as bytes."""
    workflow = tmp_path / "speak.json"
    workflow.write_text(
        '{"nodes": [{"id": "t", "type": "template", "params": {"template": "Hi {{input.who}}"}}]}'
    )
    assert clawdbot("deploy", str(workflow), url=url).returncode == 0
    assert clawdbot("call", "speak", "-i", "who=Ada", url=url).stdout == b"Hi Ada\n"


def test_everything_about_a_run(url: str, run_id: str) -> None:
    """Show, events, replay, runs: as text and as JSON."""
    shown = json.loads(clawdbot("show", run_id, "--json", url=url).stdout)
    assert shown["status"] == "completed"
    events = clawdbot("events", run_id, "--follow", "--json", url=url).stdout.splitlines()
    assert [json.loads(line)["id"] for line in events] == list(range(1, shown["events"] + 1))
    replayed = clawdbot("replay", run_id, url=url).stdout.decode()
    assert "RunStarted" in replayed
    assert "completed" in replayed
    partly = json.loads(clawdbot("replay", run_id, "--until", "3", "--json", url=url).stdout)
    assert [node["status"] for node in partly["nodes"]] == ["completed", *["pending"] * 3]
    listed = clawdbot("runs", "--workflow", "voice_assistant", "--json", url=url).stdout
    assert run_id in [json.loads(line)["run_id"] for line in listed.splitlines()]
    assert run_id in clawdbot("runs", url=url).stdout.decode()
    workflow = clawdbot("show", "voice_assistant", url=url).stdout.decode()
    assert "replicas 1\nworkers running: 1 audio, 1 text\n" in workflow
    models = clawdbot("models", "--json", url=url).stdout.splitlines()
    assert "echo" in {json.loads(line)["name"] for line in models}
    table = clawdbot("models", url=url).stdout.decode()
    assert "pocketsphinx, standing in" in table
    assert "hf download openai/whisper-tiny" in table


def test_a_run_that_is_over_takes_no_orders(url: str, run_id: str) -> None:
    """Said, not passed over in silence."""
    done = clawdbot("cancel", run_id, url=url)
    assert done.returncode == ExitCode.INVALID
    assert b"completed" in done.stderr


def test_a_cancelled_run_says_so_and_may_be_cancelled_again(
    running: Running, url: str, tmp_path: Path
) -> None:
    """As JSON and as text; `call` of it fails with the reason on stderr, JSON too."""
    workflow = tmp_path / "stuck.json"
    node = {"id": "a", "type": "model", "params": {"model": "echo"}}
    workflow.write_text(json.dumps({"nodes": [node]}))
    assert clawdbot("deploy", str(workflow), url=url).returncode == 0
    worker = running.mesh.services["text-0"]
    worker.signal(signal.SIGSTOP)
    try:
        begun = clawdbot("run", "stuck", "-i", "text=x", "--wait", "0", "--json", url=url)
        run_id = json.loads(begun.stdout)["run_id"]
        asked = clawdbot("cancel", run_id, "--json", url=url)
        assert json.loads(asked.stdout) == {"run_id": run_id, "action": "cancel"}
        late = clawdbot("call", "stuck", "-i", "text=y", "--wait", "1", "--json", url=url)
    finally:
        worker.signal(signal.SIGCONT)
    assert late.returncode == ExitCode.TIMEOUT
    assert json.loads(late.stderr)["error"]["code"] == "DEADLINE_EXCEEDED"
    followed = clawdbot("events", run_id, "--follow", url=url).stdout.decode()
    assert followed.splitlines()[-1].split()[3] == "RunCancelled"
    assert clawdbot("cancel", run_id, url=url).returncode == ExitCode.OK


@pytest.mark.parametrize(
    ("target", "code", "text"),
    [
        ("tts.audio=/nowhere/a.wav", ExitCode.INVALID, "cannot write /nowhere/a.wav"),
        ("tts.sound=a.wav", ExitCode.NOT_FOUND, "tts.sound"),
        ("tts.audio", ExitCode.INVALID, "NODE.OUTPUT=PATH"),
    ],
)
def test_what_cannot_be_saved_is_said_in_one_line(
    url: str, target: str, code: ExitCode, text: str
) -> None:
    """Never a traceback."""
    audio = f"audio={VOICE / 'weather.wav'}"
    done = clawdbot("run", "voice_assistant", "--file", audio, "--save", target, url=url)
    assert done.returncode == code
    assert text in done.stderr.decode()
    assert b"Traceback" not in done.stderr


def test_a_fallback_is_warned_of_when_it_is_deployed(url: str) -> None:
    """On stderr, so that stdout stays clean."""
    done = clawdbot("deploy", str(VOICE / "brief.json"), "--name", "cli_brief", url=url)
    assert done.stdout == b"cli_brief version 1, 3 nodes\n"
    assert b"'pocketsphinx' serves for 'whisper-large'" in done.stderr


def test_what_is_asked_for_wins_over_the_file(url: str, tmp_path: Path) -> None:
    """--name and --replicas go before what the file says; without them the file is obeyed."""
    node = {"id": "a", "type": "model", "params": {"model": "echo"}}
    workflow = tmp_path / "echo.json"
    document = {"name": "filed", "replicas": 2, "definition": {"nodes": [node]}}
    workflow.write_text(json.dumps(document))
    asked = clawdbot("deploy", str(workflow), "--name", "own", "--replicas", "3", url=url)
    assert asked.stdout == b"own version 1, 1 nodes\n"
    assert "replicas 3" in clawdbot("show", "own", url=url).stdout.decode()
    assert clawdbot("deploy", str(workflow), url=url).stdout == b"filed version 1, 1 nodes\n"
    assert "replicas 2" in clawdbot("show", "filed", url=url).stdout.decode()


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["show", "ghost"], ExitCode.NOT_FOUND, "ghost"),
        (["events", "ghost"], ExitCode.NOT_FOUND, "ghost"),
        (["run", "ghost"], ExitCode.NOT_FOUND, "ghost"),
        (["run", "voice_assistant"], ExitCode.INVALID, "inputs.audio"),
        (["run", "voice_assistant", "-i", "audio"], ExitCode.INVALID, "NAME=TEXT"),
        (["run", "voice_assistant", "-i", "audio:=x"], ExitCode.INVALID, "not JSON"),
        (["run", "voice_assistant", "-f", "audio=nowhere"], ExitCode.INVALID, "cannot read"),
        (["deploy", "nowhere.json"], ExitCode.INVALID, "cannot read"),
        (["deploy", "README.md"], ExitCode.INVALID, "not JSON"),
        (["replay", "ghost", "--until", "0"], ExitCode.INVALID, "until"),
        (["runs", "--status", "asleep"], ExitCode.INVALID, "status"),
        (["frobnicate"], ExitCode.INVALID, "frobnicate"),
    ],
)
def test_what_goes_wrong_is_one_line_and_a_status(
    url: str, words: list[str], code: ExitCode, text: str
) -> None:
    """Never a traceback."""
    done = clawdbot(*words, url=url)
    assert done.returncode == code, done.stderr
    assert text in done.stderr.decode()
    assert b"Traceback" not in done.stderr


def test_doctor_finds_what_is_there_and_what_is_not(running: Running, url: str) -> None:
    """With and without a mesh."""
    os.environ["CLAWDBOT_NATS_URL"] = running.server.url  # noqa: TID251 - a child's
    try:
        done = clawdbot("doctor", "--json", url=url)
    finally:
        del os.environ["CLAWDBOT_NATS_URL"]  # noqa: TID251 - as above
    found = {item["subject"]: item for item in map(json.loads, done.stdout.splitlines())}
    assert found["gateway"]["level"] == "ok"
    assert found["stream EVENTS"]["level"] == "ok"
    assert found["weights"]["level"] == "warn"
    assert "whisper-tiny" in found["weights"]["text"]
    assert {"clock", "stream OBJ_BLOBS"} <= set(found)
    alone = clawdbot("doctor").stdout.decode()
    assert "start it: clawdbot up" in alone
    assert "whisper-tiny" in alone


@pytest.mark.parametrize(
    ("status", "body", "why"),
    [
        (
            503,
            '{"error": {"code": "UNAVAILABLE", "message": "the bus is away"}}',
            "the bus is away",
        ),
        (404, "<html>", "no gateway of clawdbot answers there, but status 404"),
    ],
)
def test_doctor_says_in_words_why_a_gateway_is_not_ready(status: int, body: str, why: str) -> None:
    """Not in JSON; and a server of somebody else's is taken for none of ours."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        found = clawdbot("doctor", url=url).stdout.decode()
        server.shutdown()
    assert f"fail gateway: {url} is not ready: {why}\n" in found


def test_demo_speaks_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """Transcript, intent, reply, a WAV, a timeline; no process survives."""
    data = tmp_path / "demo"
    done = clawdbot("demo", "--data-dir", str(data), timeout_s=120)
    text = done.stdout.decode()
    assert done.returncode == 0, done.stderr
    for word in ("how is the weather", "weather (99%)", "look up the weather", "compute"):
        assert word in text
    assert (data / "answer.wav").read_bytes()[:4] == b"RIFF"
    assert not _processes(data)
    own = clawdbot("demo", "--data-dir", str(data), "--audio", "README.md", timeout_s=120)
    assert own.returncode == ExitCode.INVALID
    assert b"WAV" in own.stderr


def _processes(data: Path) -> list[str]:
    """Return the processes that serve from a data directory."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
        except OSError:
            continue
        if str(data).encode() in line and folder.name != str(os.getpid()):
            found.append(folder.name)
    return found


@pytest.fixture
def up(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path, str]]:
    """A mesh of `clawdbot up`."""
    data = tmp_path / "up"
    process = _start(data)
    with process:
        yield process, data, _address(process)
        process.kill()


def _start(data: Path) -> subprocess.Popen[bytes]:
    words = ("up", "--data-dir", str(data), "--port", "0", "--nats-port", "0", "--json")
    return subprocess.Popen([*CLAWDBOT, *words], stdout=subprocess.PIPE, cwd=ROOT)  # noqa: S603


def _address(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        document = json.loads(line)
        if document["event"] == "up":
            return str(document["url"])
    raise AssertionError("the mesh did not come up")


def _pid(data: Path, word: bytes) -> int | None:
    for name in _processes(data):
        try:
            if word in Path(f"/proc/{name}/cmdline").read_bytes():
                return int(name)
        except OSError:
            continue
    return None


def _restarted(data: Path, word: bytes, victim: int) -> bool:
    return _pid(data, word) not in {None, victim}


@pytest.mark.timeout(180)
def test_up_restarts_what_dies_keeps_what_is_stored_and_stops_cleanly(
    up: tuple[subprocess.Popen[bytes], Path, str],
) -> None:
    """Kill -9 of a service and of the server; SIGTERM; a second start on the same data."""
    process, data, url = up
    assert clawdbot("deploy", str(VOICE / "workflow.json"), url=url).returncode == 0
    audio = f"audio={VOICE / 'weather.wav'}"
    again = clawdbot("up", "--data-dir", str(data), "--port", "0")
    assert again.returncode == ExitCode.INVALID
    assert b"already" in again.stderr
    port = url.rpartition(":")[2]
    taken = clawdbot("up", "--data-dir", f"{data}2", "--port", port)
    assert taken.returncode == ExitCode.INVALID
    assert f"cannot listen on 127.0.0.1:{port}" in taken.stderr.decode()
    assert b"--port" in taken.stderr
    run_id = ""
    for word in (b"services.orchestrator", b"nats-server", b"services.gateway"):
        victim = _pid(data, word)
        assert victim is not None, word
        os.kill(victim, signal.SIGKILL)
        until_sync(partial(_restarted, data, word, victim))
        done = clawdbot("run", "voice_assistant", "--file", audio, "--json", url=url)
        assert done.returncode == 0, (word, done.stderr)
        run_id = json.loads(done.stdout)["run_id"]
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert not _processes(data)

    with _start(data) as second:
        shown = clawdbot("show", run_id, "--json", url=_address(second))
        second.kill()  # the hard way: nothing may outlive it
    assert json.loads(shown.stdout)["status"] == "completed"
    until_sync(lambda: not _processes(data))


@pytest.mark.timeout(120)
def test_up_honours_replicas(up: tuple[subprocess.Popen[bytes], Path, str]) -> None:
    """Two workers for the modality that a workflow uses, one again for the rest."""
    _, data, url = up
    done = clawdbot("deploy", str(VOICE / "commands.json"), "--replicas", "2", url=url)
    assert done.returncode == 0, done.stderr

    def workers() -> list[str]:
        return sorted(path.stem for path in (data / "logs").glob("worker-*.log"))

    wanted = ["worker-audio-0", "worker-audio-1", "worker-text-0", "worker-text-1"]
    until_sync(lambda: workers() == [*wanted, "worker-vision-0"], timeout_s=30)
    line = b"replicas 2\nworkers running: 2 audio, 2 text\n"
    until_sync(lambda: line in clawdbot("show", "voice_commands", url=url).stdout, timeout_s=30)

    def scraped() -> dict[str, str]:
        targets = json.loads((data / "metrics.json").read_text())
        return {item["labels"]["instance"]: item["targets"][0] for item in targets}

    services = {"gateway", "orchestrator", "worker-vision-0", *wanted}
    until_sync(lambda: set(scraped()) == services)
    for name, address in scraped().items():
        metrics = httpx.get(f"http://{address}/metrics").text
        assert "clawdbot_bus_connected" in metrics, name
    findings = clawdbot("doctor", "--data-dir", str(data), "--json", url=url).stdout.splitlines()
    levels = {item["subject"]: item["level"] for item in map(json.loads, findings)}
    assert {levels[f"service {name}"] for name in services} == {"ok"}


def test_a_demo_that_is_interrupted_says_so_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """Exit status 130, for whoever runs it in a script."""
    data = tmp_path / "demo"
    words = ("demo", "--data-dir", str(data))
    with subprocess.Popen([*CLAWDBOT, *words], cwd=ROOT) as process:  # noqa: S603 - our own
        until_sync(lambda: len(_processes(data)) > 3, timeout_s=30)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == ExitCode.INTERRUPTED
    assert not _processes(data)
