"""House style that no other tool checks."""

import ast
import importlib.metadata
import re
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("clawdbot", "schemas", "events", "services")
TREES = (*PACKAGES, "tests", "bench", "models", "examples")
FUNCTION_LINES_MAX = 60
MODULE_LINES_MAX = 400
ADR_LINES_MAX = 40
README_LINES_MAX = 200
SUBJECT_OWNER = "events/subjects.py"
GRAMMAR = "clawdbot" + ".v1."
# Run by name, imported by nobody.
ENTRY_POINTS = {"clawdbot.cli", "services.contracts", "services.health"}
# Twins that tests and simulations stand on.
TWINS = {"events.memory"}


def sources(*trees: str) -> list[Path]:
    """Return the Python files below some folders."""
    return sorted(path for tree in trees for path in (ROOT / tree).rglob("*.py"))


def name(path: Path) -> str:
    """Return a path as readers of a failure want it."""
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    """Return the dotted name of a module."""
    return name(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def parse(path: Path) -> ast.Module:
    """Return a module's syntax tree."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports(tree: ast.Module) -> set[str]:
    """Return every dotted name a module imports, and those it names in strings."""
    found: set[str] = set()
    for part in ast.walk(tree):
        if isinstance(part, ast.Import):
            found.update(alias.name for alias in part.names)
        elif isinstance(part, ast.ImportFrom) and part.module:
            found.add(part.module)
            found.update(f"{part.module}.{alias.name}" for alias in part.names)
        elif isinstance(part, ast.Constant) and isinstance(part.value, str):
            found.add(part.value)  # engines are registered by name
    return found


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


def test_readme_is_short() -> None:
    """The README has at most 200 lines."""
    readme = ROOT / "README.md"
    if not readme.exists():
        pytest.skip("no README yet")
    assert len(readme.read_text(encoding="utf-8").splitlines()) <= README_LINES_MAX


def test_every_setting_is_documented() -> None:
    """Each CLAWDBOT_ variable that the services read stands in the documentation."""
    documents = "".join(
        path.read_text(encoding="utf-8") for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
    )
    known = settings_names()
    if "CLAWDBOT_" not in documents:
        pytest.skip("no documented settings yet")
    assert set() == {variable for variable in known if variable not in documents}


def settings_names() -> set[str]:
    """Return the variables behind every settings class: prefix and field."""
    found: set[str] = set()
    for path in sources("services"):
        if path.name != "settings.py":
            continue
        for part in ast.walk(parse(path)):
            if isinstance(part, ast.ClassDef) and part.name.endswith("Settings"):
                found.update(
                    f"CLAWDBOT_{line.target.id.upper()}"
                    for line in part.body
                    if isinstance(line, ast.AnnAssign)
                    and isinstance(line.target, ast.Name)
                    and line.target.id != "model_config"
                )
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_nobody_else_owns_our_names(package: str) -> None:
    """No installed distribution but ours brings a top-level package of our names."""
    owners = set(importlib.metadata.packages_distributions().get(package, []))
    assert owners <= {"clawdbot"}
