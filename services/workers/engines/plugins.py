"""Engines of other packages: an entry point, and not a line of the core.

    [project.entry-points."clawdbot.engines"]
    reading_time = "reading_time:ReadingTimeEngine"

A package that is installed beside clawdbot is the operator's choice, and is trusted like clawdbot
itself; it is imported only when a model of the catalogue names its engine. A name that is taken is
refused: nobody replaces an engine by being installed.
"""

import inspect
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import MappingProxyType

from typing_extensions import override

from schemas.catalogue import ModelSpec
from schemas.errors import FailedPrecondition, ModelUnavailable, NotFound
from schemas.values import Value
from services.workers.engine import AnyEngine, AsyncEngine, Engine, Request


GROUP = "clawdbot.engines"
_NAME = re.compile(r"[a-z][a-z0-9_]*")


@cache
def discover(taken: tuple[str, ...]) -> Mapping[str, EntryPoint]:
    """Return the engines of the packages that are installed now, by name; imports none.

    Args:
        taken: Names of clawdbot's own engines.

    Raises:
        FailedPrecondition: A name that no catalogue can have, or that is taken; names the package.
    """
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=GROUP):
        what = f"the package {package_of(entry)} brings an engine called '{entry.name}'"
        if not _NAME.fullmatch(entry.name):
            raise FailedPrecondition(
                f"{what}: a name is lower case letters, digits and _, and begins with a letter",
                field=GROUP,
            )
        if entry.name in taken:
            raise FailedPrecondition(
                f"{what}, which is one of clawdbot's own: rename it, or uninstall the package",
                field=GROUP,
            )
        if entry.name in found:
            other = package_of(found[entry.name])
            raise FailedPrecondition(
                f"{what}, and so does the package {other}: uninstall one of them", field=GROUP
            )
        found[entry.name] = entry
    return MappingProxyType(found)


def engine_class(name: str, taken: tuple[str, ...]) -> type[AnyEngine]:
    """Return the engine called `name` of another package, importing it.

    Raises:
        NotFound: No installed package brings it; names those there are, and the remedy.
        FailedPrecondition: It cannot be imported, or is no engine; names the package.
    """
    entries = discover(taken)
    entry = entries.get(name)
    if entry is None:
        known = ", ".join(sorted({*taken, *entries}))
        raise NotFound(
            f"no engine named '{name}'; known: {known}. An engine of another package is there once "
            "that is installed in the workers' environment: pip install <package>",
            field="engine",
        )
    return _checked(entry)


@cache
def _checked(entry: EntryPoint) -> type[AnyEngine]:
    """Import an engine.

    Raises:
        FailedPrecondition: It cannot be imported, or does not keep the contract.
    """
    what = f"the engine '{entry.name}' of the package {package_of(entry)}"
    try:
        found = entry.load()
    except Exception as error:
        raise FailedPrecondition(
            f"{what} cannot be imported ({_why(error)}): install what it needs, or mend "
            f"'{entry.value}'",
            field=GROUP,
            cause=str(error),
        ) from error
    if not (isinstance(found, type) and issubclass(found, Engine | AsyncEngine)):
        raise FailedPrecondition(
            f"{what} is not a class derived from Engine, BatchEngine or AsyncEngine of "
            "services.workers.engine",
            field=GROUP,
        )
    if inspect.isabstract(found):
        lacking = ", ".join(sorted(found.__abstractmethods__))
        raise FailedPrecondition(f"{what} does not have {lacking}", field=GROUP)
    return found


def _why(error: Exception) -> str:
    """Return what is wrong with an import, without paths: clients read it."""
    if isinstance(error, ModuleNotFoundError):
        return f"there is no module '{error.name}'"
    return type(error).__name__


def package_of(entry: EntryPoint) -> str:
    """Return the name of the package that brings an engine."""
    return "without a name" if entry.dist is None else entry.dist.name


class AbsentEngine(Engine):
    """Stands where a model's engine is not there, and says why: the other models are served."""

    def __init__(self, spec: ModelSpec, models_dir: Path, reason: str) -> None:
        super().__init__(spec, models_dir)
        self._reason = reason

    @override
    def missing(self) -> str | None:
        return self._reason

    @override
    def load(self) -> None:
        raise ModelUnavailable(self._reason)

    @override
    def infer(self, batch: Sequence[Request]) -> list[Mapping[str, Value]]:
        raise ModelUnavailable(self._reason)
