"""Print what clawdbot depends on, one requirement a line: `requirements.py [extra ...]`."""

import sys
import tomllib
from pathlib import Path


project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
extras = project["optional-dependencies"]
pending, found = [*project["dependencies"], *(f"clawdbot[{name}]" for name in sys.argv[1:])], []
while pending:
    requirement = pending.pop()
    if requirement.startswith("clawdbot["):
        pending += extras[requirement.removeprefix("clawdbot[").rstrip("]")]
    else:
        found.append(requirement)
sys.stdout.write("\n".join(sorted(found)) + "\n")
