"""The catalogue as it is now: the file every service starts with, and the model repository.

A repository's model stands in it once for each name it has: `iris`, `iris@3`, `iris@stable`. Where
a request or a run begins, a name becomes that of one version, by a key: whoever has the same
records makes the same choice.
"""

from collections.abc import Iterable, Mapping

from schemas.catalogue import Catalogue, ModelSpec
from schemas.errors import NotFound
from schemas.plan import Plan
from schemas.repository import AT, ModelRecord, ModelVersion, split
from schemas.versions import with_models


class LiveCatalogue:
    """Models and templates, of which models come and go.

    Args:
        base: What every service starts with; its names cannot be taken.
    """

    def __init__(self, base: Catalogue) -> None:
        self.base = base
        self.now = base
        """Every model and template that a workflow may name: versions that are not kept ready are
        fetched when they are asked for."""
        self.offered: frozenset[str] = frozenset()
        """Versions of the repository that workers keep ready, by concrete name."""
        self._records: dict[str, ModelRecord] = {}

    def merge(self, records: Iterable[ModelRecord]) -> bool:
        """Take what is newer than what is known; tell whether anything was."""
        changed = False
        for record in records:
            known = self._records.get(record.name)
            if known is None or record.change > known.change:
                self._records[record.name] = record
                changed = True
        if changed:
            self.offered = frozenset(
                f"{name}{AT}{version.version}"
                for name, record in self.records.items()
                for version in record.offered()
            )
            models = {**self._pushed(), **self.base.models}
            self.now = self.base.model_copy(update={"models": models})
        return changed

    def record(self, name: str) -> ModelRecord | None:
        """Return what the repository has of a model; None for any other."""
        found = self._records.get(name)
        if found is None or not found.versions or name in self.base.models:
            return None
        return found

    @property
    def records(self) -> Mapping[str, ModelRecord]:
        """What the repository has, by name."""
        found = {name: self.record(name) for name in sorted(self._records)}
        return {name: record for name, record in found.items() if record is not None}

    def concrete(self, name: str, key: str) -> str:
        """Return the name of the one version that a request under a key gets.

        Without a key it is the version in use. A name of the catalogue's file, and one that nothing
        is known of, comes back as it is.

        Raises:
            NotFound: No such version or alias, none is in use, or all were removed.
        """
        model, reference = split(name)
        record = self.record(model)
        if record is None and model in self._records and model not in self.base.models:
            raise NotFound(f"the model '{model}' was removed from the repository", field="model")
        if record is None:
            return name
        found = record.choose(key) if key and not reference else record.find(reference)
        return f"{model}{AT}{found.version}"

    def version(self, name: str) -> ModelVersion | None:
        """Return the version that a concrete name means; None for the catalogue's own models.

        Raises:
            NotFound: It is not there.
        """
        model, reference = split(name)
        record = self.record(model)
        return None if record is None else record.find(reference)

    def pinned(self, plan: Plan, key: str) -> Plan:
        """Return a plan in which every model is one version, for a run that begins.

        Raises:
            NotFound: A model of it was removed.
        """
        if not self._records:
            return plan
        return with_models(plan, lambda _path, _index, name: self.concrete(name, key))

    def _pushed(self) -> dict[str, ModelSpec]:
        """Return the repository's models by each of their names."""
        found: dict[str, ModelSpec] = {}
        for name, record in self.records.items():
            if not record.loaded:
                continue
            specs = {item.version: spec_of(item) for item in record.versions}
            found |= {f"{name}{AT}{number}": spec for number, spec in specs.items()}
            found |= {f"{name}{AT}{alias}": specs[at] for alias, at in record.aliases.items()}
            if record.current:
                found[name] = specs[record.current]
        return found


def spec_of(version: ModelVersion) -> ModelSpec:
    """Return a version's spec as the catalogue has it."""
    return version.spec.model_copy(update={"version": str(version.version)})
