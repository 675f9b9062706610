"""Reads the repository's own Python files, for tests about the code."""

import ast
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("clawdbot", "schemas", "events", "services")


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
