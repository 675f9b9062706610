"""The commands of the model repository, as a user types them."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from clawdbot.cli.main import app
from clawdbot.cli.output import ExitCode
from tests.integration.conftest import Running
from tests.support import onnx_models as tiny


pytestmark = pytest.mark.nats


@dataclass(frozen=True)
class Done:
    """How a command went."""

    status: int
    out: str
    err: str


def clawdbot(*words: str, url: str = "http://127.0.0.1:9") -> Done:
    """Run a command in this process: a new one each time takes longer than all of them."""
    found = CliRunner().invoke(app, [*words, "--url", url], env={"COLUMNS": "160"})
    return Done(found.exit_code, found.stdout, found.stderr)


def test_a_model_from_push_to_removal(running: Running, tmp_path: Path) -> None:
    """Every command once, for people and as JSON."""
    url, name = running.url(), "typed"
    path = tmp_path / f"{name}.onnx"
    for number, proto in enumerate((tiny.iris(), tiny.iris()), 1):
        proto.producer_version = str(number)
        tiny.save(proto, path)
        done = clawdbot("models", "push", str(path), url=url)
        assert f"typed version {number}; in use: {number}\n" == done.out, done.err
    again = clawdbot("models", "push", str(path), "--json", url=url)
    assert {"version": 2, "created": False}.items() <= json.loads(again.out).items()
    back = clawdbot("models", "rollback", name, url=url)
    assert back.out.startswith("typed: in use 1\n")
    tried = json.loads(clawdbot("models", "canary", name, "2", "10", "--json", url=url).out)
    assert {"2": 10} == tried["canaries"]
    stable = clawdbot("models", "alias", name, "stable", "1", url=url).out
    assert "typed: in use 1, canary 2 gets 10 %, stable is 1\n" in stable
    kept = json.loads(clawdbot("models", "policy", name, "--all", "--json", url=url).out)
    assert "all" == kept["policy"]["keep"]
    assert "typed" in clawdbot("models", "list", url=url).out
    shown = json.loads(clawdbot("models", "inspect", f"{name}@stable", "--json", url=url).out)
    assert [1] == [version["version"] for version in shown["versions"]]
    pulled = tmp_path / "pulled"
    assert 0 == clawdbot("models", "pull", f"{name}@2", str(pulled), url=url).status
    assert path.read_bytes() == (pulled / path.name).read_bytes()
    needed = clawdbot("models", "remove", f"{name}@1", url=url)
    assert ExitCode.INVALID == needed.status
    assert "alias 'stable'" in needed.err
    assert 0 == clawdbot("models", "remove", name, "--force", url=url).status
    gone = clawdbot("models", "inspect", name, url=url)
    assert ExitCode.NOT_FOUND == gone.status


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("policy", "x"), "give one of --latest, --all, --versions"),
        (("policy", "x", "--all", "--latest", "2"), "give one of"),
        (("policy", "x", "--versions", "1,b"), "numbers with commas"),
        (("push", "nowhere"), "there is no folder 'nowhere'"),
        (("push", "README.md"), "is no .onnx file"),
        (("push", "x.onnx", "--modality", "smell"), "use text, audio or vision"),
    ],
)
def test_what_cannot_be_meant(words: tuple[str, ...], said: str) -> None:
    """One line that says how to write it."""
    done = clawdbot("models", *words)
    assert ExitCode.INVALID == done.status
    assert said in done.err
