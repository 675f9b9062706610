"""Runs the scripts that measure other systems; those live in environments below `$PEERS`."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def peers() -> Path:
    """Return where the environments of the others are."""
    return Path(os.environ.get("PEERS", "/var/tmp/peers"))  # noqa: TID251, S108 - the scripts' own


def environment(python: Path) -> dict[str, str]:
    """Return the environment of the scripts.

    PyTriton brings a program that links `libpython3.11.so` from wherever the system finds it, and
    runs the modules of the interpreter that started it: both must be of one version.
    """
    found = dict(os.environ)  # noqa: TID251 - handed to a child
    libraries = [str(python.resolve().parents[1] / "lib"), found.get("LD_LIBRARY_PATH", "")]
    found["LD_LIBRARY_PATH"] = ":".join(filter(None, libraries))
    return found | {"PEERS": str(peers())}


def measured(system: str, script: Path, arguments: Sequence[str]) -> list[dict[str, Any]]:
    """Measure a system by its own script; nothing, and a line that says why, if it is not there.

    Args:
        system: Its name, the script's first argument.
        script: Writes its figures as JSON lines to `--out`.
        arguments: The others.
    """
    python = peers() / "base" / "bin" / "python"
    if not script.is_file() or not python.is_file():
        print(f"{system}: left out, no {script.name} or no environment in $PEERS", file=sys.stderr)
        return []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.jsonl"
        command = [str(python), str(script.resolve()), system, *arguments, "--rounds", "1"]
        done = subprocess.run(  # noqa: S603 - scripts the caller named
            [*command, "--out", str(out)],
            env=environment(python),
            capture_output=True,
            text=True,
            check=False,
        )
        lines = out.read_text(encoding="utf-8").splitlines() if out.exists() else []
    if not lines:
        print(f"{system}: left out, {done.stdout.strip()[-300:]}", file=sys.stderr)
    return [json.loads(line) for line in lines]
