"""House style that no other tool checks."""

import ast
import importlib.metadata
import re
from pathlib import Path

import pytest
from pydantic_settings import BaseSettings

from clawdbot.settings import FaceSettings
from services.gateway.settings import GatewaySettings
from services.orchestrator.settings import OrchestratorSettings
from services.settings import Settings
from services.workers.settings import WorkerSettings
from tests.support import documents
from tests.support.code import PACKAGES, ROOT, imports, module_of, name, parse, sources


TREES = (*PACKAGES, "tests", "bench", "models", "examples")
FUNCTION_LINES_MAX = 60
MODULE_LINES_MAX = 400
ADR_LINES_MAX = 40
README_LINES_MAX = 200
SUBJECT_OWNER = "events/subjects.py"
GRAMMAR = "clawdbot" + ".v1."
# Run by name, imported by nobody.
ENTRY_POINTS = {
    "clawdbot.cli",
    "services.contracts",
    "services.health",
    "services.workers.engines.chat_child",
}
# Twins that tests and simulations stand on.
TWINS = {"events.memory"}
# Headings of docs/configuration.md, and whose settings they list.
SETTINGS: dict[str, type[BaseSettings]] = {
    "Client, command line and `clawdbot up`": FaceSettings,
    "Every service": Settings,
    "Gateway": GatewaySettings,
    "Orchestrator": OrchestratorSettings,
    "Workers": WorkerSettings,
}


def docstrings(tree: ast.Module) -> set[int]:
    """Return the ids of the constants that are documentation."""
    return {
        id(part.value)
        for part in ast.walk(tree)
        if isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant)
    }


def test_functions_are_short() -> None:
    """No function is longer than 60 lines."""
    long = [
        f"{name(path)}:{part.lineno} {part.name}"
        for path in sources(*TREES)
        for part in ast.walk(parse(path))
        if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)
        and (part.end_lineno or 0) - part.lineno + 1 > FUNCTION_LINES_MAX
    ]
    assert [] == long


def test_modules_are_short() -> None:
    """No module of the product is longer than 400 lines."""
    lengths = {name(path): len(path.read_text().splitlines()) for path in sources(*PACKAGES)}
    assert {} == {path: size for path, size in lengths.items() if size > MODULE_LINES_MAX}


def test_todos_name_their_issue() -> None:
    """What is left to do names its issue: `TODO(#12)`."""
    wish = re.compile(r"\b(?:T[O]DO|F[I]XME|X[X]X)\b(?!\(#\d+\))")
    wishes = [
        f"{name(path)}:{number}"
        for path in sources(*TREES)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if wish.search(line)
    ]
    assert [] == wishes


def test_one_file_owns_the_subjects() -> None:
    """Subjects are built by events.subjects and spelled nowhere else in the product."""
    spelled = []
    for path in sources(*PACKAGES):
        if name(path) == SUBJECT_OWNER:
            continue
        tree = parse(path)
        words = docstrings(tree)
        spelled += [
            f"{name(path)}:{part.lineno}"
            for part in ast.walk(tree)
            if isinstance(part, ast.Constant)
            and isinstance(part.value, str)
            and GRAMMAR in part.value + "."
            and id(part) not in words
        ]
    assert [] == spelled


def test_no_module_is_dead() -> None:
    """Every module of the product is imported by another, or is an entry point."""
    used = ENTRY_POINTS | TWINS
    for path in sources(*PACKAGES):
        used |= imports(parse(path)) - {module_of(path)}
    dead = [
        name(path)
        for path in sources(*PACKAGES)
        if path.name not in {"__init__.py", "__main__.py"} and module_of(path) not in used
    ]
    assert [] == dead


def test_every_test_says_what_it_shows() -> None:
    """Every test has a docstring."""
    silent = [
        f"{name(path)}:{part.lineno} {part.name}"
        for path in sources("tests")
        if path.name.startswith("test_")
        for part in ast.walk(parse(path))
        if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)
        and part.name.startswith("test_")
        and not ast.get_docstring(part)
    ]
    assert [] == silent


def test_decisions_are_short() -> None:
    """An ADR has at most 40 lines."""
    lengths = {
        name(path): len(path.read_text(encoding="utf-8").splitlines())
        for path in (ROOT / "docs" / "adr").glob("*.md")
    }
    assert {} == {path: size for path, size in lengths.items() if size > ADR_LINES_MAX}


def test_decisions_have_one_form() -> None:
    """Number of the file, status and date, and the four sections in their order."""
    form = re.compile(
        r"# ADR-(\d{4}): .+\n\nStatus: \w+ · Date: \d{4}-\d\d-\d\d\n\n## Context\n.+"
        r"\n## Decision\n.+\n## Consequences\n.+\n## Alternatives\n.+",
        re.DOTALL,
    )
    odd = []
    for path in sorted((ROOT / "docs" / "adr").glob("*.md")):
        found = form.fullmatch(path.read_text(encoding="utf-8"))
        if found is None or found[1] != path.name[:4]:
            odd.append(name(path))
    assert [] == odd


def test_readme_is_short() -> None:
    """The README has at most 200 lines."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= README_LINES_MAX


@pytest.mark.parametrize("heading", SETTINGS)
def test_every_setting_is_documented(heading: str) -> None:
    """Each CLAWDBOT_ variable stands in docs/configuration.md, with the default of the code."""
    rows = documents.table("docs/configuration.md", heading)
    said = {row["variable"]: row["default"] for row in rows}
    known = {
        f"CLAWDBOT_{field.upper()}": str(default) if isinstance(default, Path) else default
        for field, default in own_defaults(SETTINGS[heading]).items()
    }
    assert known.keys() == said.keys()
    assert known == {name: documents.value(said[name], known[name]) for name in known}


def own_defaults(kind: type[BaseSettings]) -> dict[str, object]:
    """Return the defaults of the fields that a settings class declares itself."""
    return {name: kind.model_fields[name].default for name in kind.__annotations__}


def test_no_settings_class_is_forgotten() -> None:
    """Every settings module of the product has its table."""
    modules = {module_of(path) for path in sources(*PACKAGES) if path.name == "settings.py"}
    assert modules == {kind.__module__ for kind in SETTINGS.values()}


@pytest.mark.parametrize("package", PACKAGES)
def test_nobody_else_owns_our_names(package: str) -> None:
    """No installed distribution but ours brings a top-level package of our names."""
    owners = set(importlib.metadata.packages_distributions().get(package, []))
    assert owners <= {"clawdbot"}
