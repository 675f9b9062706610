"""The model repository's index: what versions a model has, and which of them a name means.

`iris` is the version in use, or one of its canaries; `iris@3` is version 3, `iris@stable` what
the alias says. Everything here is pure: a record and an order give the next record.
"""

import hashlib
import re
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field, model_validator

from schemas.catalogue import ModelSpec
from schemas.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from schemas.ids import Sha256
from schemas.message import Message, UserInput


VERSIONS_MAX = 64
ALIASES_MAX = 32
CANARIES_MAX = 8
PARTS_MAX = 4096
PART_BYTES_MAX = 16 * 1024 * 1024
VERSION_MAX = 2**31 - 1
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
NAME_RULE = "use 1 to 64 letters, digits, '_', '.' or '-', a letter or digit first"
ALIAS = r"^[a-z][a-z0-9_-]{0,31}$"
AT = "@"
WHOLE = 100
"""Percent."""

VersionNumber = Annotated[int, Field(ge=1, le=VERSION_MAX)]


class ModelFile(UserInput):
    """One file of a version, as parts in the object store."""

    path: str
    """Below the model's folder."""
    size_bytes: int = Field(ge=0)
    sha256: Sha256
    """Of the whole file."""
    parts: tuple[Sha256, ...] = Field(strict=False, max_length=PARTS_MAX)
    """Of each part, in order; a part holds at most 16 MiB."""


class Push(UserInput):
    """A new version, whose parts are there already."""

    spec: ModelSpec
    """As in the catalogue; `source` is a path among the files."""
    files: tuple[ModelFile, ...] = Field(default=(), strict=False)
    hold: bool = False
    """Keep it without using it."""
    percent: int = Field(default=WHOLE, ge=1, le=WHOLE)
    """How much of the requests it gets; the rest stays with the version in use."""
    force: bool = False
    """Take it although its inputs or outputs differ from those of the version before."""


class ModelVersion(Message):
    """One version; it never changes."""

    version: int
    digest: str
    """Of the spec and all files."""
    spec: ModelSpec
    files: tuple[ModelFile, ...] = ()
    pushed_at: float

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(item.size_bytes for item in self.files)


class Canary(Message):
    """A version that gets a part of the requests."""

    version: int
    percent: int


class VersionPolicy(UserInput):
    """Which versions are offered beside those in use; the others wait in the store."""

    keep: Literal["latest", "all", "specific"] = "latest"
    count: int = Field(default=1, ge=1, le=VERSIONS_MAX)
    """Of `latest`: so many of the newest."""
    versions: tuple[VersionNumber, ...] = Field(default=(), strict=False, max_length=VERSIONS_MAX)
    """Of `specific`."""


class ModelControl(UserInput):
    """What an operator wants of a model."""

    action: Literal["alias", "unalias", "canary", "promote", "rollback", "policy", "load", "unload"]
    alias: str = Field(default="", max_length=32)
    """Of `alias` and `unalias`."""
    version: VersionNumber | None = None
    """Of `alias`, `canary` and `promote`; `promote` takes the canary, else the newest, without."""
    percent: int = Field(default=0, ge=0, le=WHOLE)
    """Of `canary`; 0 ends it."""
    policy: VersionPolicy | None = None
    """Of `policy`."""

    @model_validator(mode="after")
    def _is_whole(self) -> "ModelControl":
        needs = {
            "alias": ("alias", "version"),
            "unalias": ("alias",),
            "canary": ("version",),
            "policy": ("policy",),
        }
        for name in needs.get(self.action, ()):
            if not getattr(self, name):
                raise ValueError(f"{self.action} needs a field '{name}'")
        return self


class ModelRecord(Message):
    """Everything the index has of one model."""

    name: str
    change: int = 0
    """Grows with every change, so the newer of two copies is known."""
    next_version: int = 1
    """Numbers are never used twice, not even when everything was removed."""
    versions: tuple[ModelVersion, ...] = ()
    current: int = 0
    """The version in use; 0 for none."""
    previous: int = 0
    """What `rollback` goes back to."""
    canaries: tuple[Canary, ...] = ()
    aliases: dict[str, int] = Field(default_factory=dict)
    policy: VersionPolicy = VersionPolicy()
    loaded: bool = True
    """Whether workers offer it."""

    def version(self, number: int) -> ModelVersion:
        """Return one version.

        Raises:
            NotFound: It is not there.
        """
        for found in self.versions:
            if found.version == number:
                return found
        known = ", ".join(str(item.version) for item in self.versions) or "none"
        raise NotFound(f"model '{self.name}' has no version {number}; it has {known}")

    def find(self, reference: str) -> ModelVersion:
        """Return the version that a number, an alias, or nothing (the one in use) means.

        Raises:
            NotFound: None.
        """
        if (
            reference.isascii()
            and reference.isdecimal()
            and len(reference) <= len(str(VERSION_MAX))
        ):
            return self.version(int(reference))
        if reference in self.aliases:
            return self.version(self.aliases[reference])
        if reference:
            known = ", ".join(sorted(self.aliases)) or "none"
            raise NotFound(f"model '{self.name}' has no alias '{reference[:32]}'; it has {known}")
        if not self.current:
            raise NotFound(f"no version of model '{self.name}' is in use; promote one")
        return self.version(self.current)

    def choose(self, key: str) -> ModelVersion:
        """Return the version that a request under this key gets: the same key, the same version.

        Raises:
            NotFound: None is in use.
        """
        digest = hashlib.sha256(f"{self.name}/{key}".encode()).digest()
        drawn = int.from_bytes(digest[:8], "big") % WHOLE
        for canary in self.canaries:
            if drawn < canary.percent:
                return self.version(canary.version)
            drawn -= canary.percent
        return self.find("")

    def offered(self) -> tuple[ModelVersion, ...]:
        """Return the versions that workers keep ready, the oldest first."""
        if not self.loaded:
            return ()
        return tuple(item for item in self.versions if item.version in self._kept())

    def _kept(self) -> set[int]:
        kept = {self.current, self.previous, *self.aliases.values()}
        kept |= {canary.version for canary in self.canaries}
        numbers = [item.version for item in self.versions]
        match self.policy.keep:
            case "all":
                kept.update(numbers)
            case "latest":
                kept.update(numbers[-self.policy.count :])
            case "specific":
                kept.update(self.policy.versions)
        return kept

    def pushed(self, version: ModelVersion, push: Push) -> "ModelRecord":
        """Return the record with one more version.

        Raises:
            ResourceExhausted: There are too many.
        """
        if len(self.versions) >= VERSIONS_MAX:
            raise ResourceExhausted(
                f"model '{self.name}' has {VERSIONS_MAX} versions; remove old ones first"
            )
        grown = self._changed(versions=(*self.versions, version), next_version=version.version + 1)
        if push.hold:
            return grown
        if push.percent < WHOLE and self.current:
            return grown.obey(
                ModelControl(action="canary", version=version.version, percent=push.percent)
            )
        return grown.obey(ModelControl(action="promote", version=version.version))

    def obey(self, order: ModelControl) -> "ModelRecord":
        """Return the record as an order makes it.

        Raises:
            NotFound: It names a version or an alias that is not there.
            InvalidArgument: An alias is malformed, or canaries take more than all requests.
            FailedPrecondition: There is nothing to go back to.
        """
        obeyed: dict[str, Callable[[ModelControl], ModelRecord]] = {
            "alias": lambda order: self._aliased(order.alias, order.version or 0),
            "unalias": lambda order: self._unaliased(order.alias),
            "canary": lambda order: self._with_canary(order.version or 0, order.percent),
            "promote": lambda order: self._promoted(order.version),
            "rollback": lambda _: self._rolled_back(),
            "policy": lambda order: self._kept_by(order.policy or VersionPolicy()),
            "load": lambda _: self._changed(loaded=True),
            "unload": lambda _: self._changed(loaded=False),
        }
        return obeyed[order.action](order)

    def removed(self, number: int | None) -> "ModelRecord":
        """Return the record without a version and all that names it; without any for None.

        Raises:
            NotFound: It is not there.
        """
        if number is None:
            return ModelRecord(
                name=self.name, change=self.change + 1, next_version=self.next_version
            )
        self.version(number)
        left = tuple(item for item in self.versions if item.version != number)
        if not left:
            return self.removed(None)
        current = self.current
        if current == number:
            current = self.previous if self.previous != number else 0
        return self._changed(
            versions=left,
            current=current,
            previous=0 if self.previous in {number, current} else self.previous,
            canaries=tuple(canary for canary in self.canaries if canary.version != number),
            aliases={name: at for name, at in self.aliases.items() if at != number},
            policy=self.policy.model_copy(
                update={"versions": tuple(n for n in self.policy.versions if n != number)}
            ),
        )

    def uses(self, number: int) -> list[str]:
        """Return what in the record itself needs a version."""
        found = [f"the alias '{name}'" for name, at in self.aliases.items() if at == number]
        found += ["a canary"] if any(canary.version == number for canary in self.canaries) else []
        if number == self.current and len(self.versions) > 1:
            found.append("it is the one in use: promote another one first")
        return found

    def _aliased(self, alias: str, number: int) -> "ModelRecord":
        self.version(number)
        if not _fits(ALIAS, alias):
            raise InvalidArgument(
                "use 1 to 32 lower-case letters, digits, '_' or '-', a letter first", field="alias"
            )
        if alias not in self.aliases and len(self.aliases) >= ALIASES_MAX:
            raise ResourceExhausted(f"model '{self.name}' has {ALIASES_MAX} aliases already")
        return self._changed(aliases={**self.aliases, alias: number})

    def _unaliased(self, alias: str) -> "ModelRecord":
        if alias not in self.aliases:
            raise NotFound(f"model '{self.name}' has no alias '{alias}'", field="alias")
        left = {name: at for name, at in self.aliases.items() if name != alias}
        return self._changed(aliases=left)

    def _kept_by(self, policy: VersionPolicy) -> "ModelRecord":
        for number in policy.versions:
            self.version(number)
        return self._changed(policy=policy)

    def _with_canary(self, number: int, percent: int) -> "ModelRecord":
        self.version(number)
        if not self.current or number == self.current:
            raise FailedPrecondition(
                f"a canary needs another version in use beside {number}", field="version"
            )
        if percent == WHOLE:
            return self._promoted(number)
        others = tuple(canary for canary in self.canaries if canary.version != number)
        canaries = (*others, Canary(version=number, percent=percent)) if percent else others
        if len(canaries) > CANARIES_MAX:
            raise ResourceExhausted(f"at most {CANARIES_MAX} versions are canaries at once")
        if sum(canary.percent for canary in canaries) > WHOLE:
            raise InvalidArgument("canaries take more than 100 percent together", field="percent")
        return self._changed(canaries=canaries)

    def _promoted(self, number: int | None) -> "ModelRecord":
        if number is None:
            if not self.versions:
                raise NotFound(f"model '{self.name}' has no versions")
            number = self.canaries[-1].version if self.canaries else self.versions[-1].version
        self.version(number)
        if number == self.current:
            return self._changed(canaries=())
        return self._changed(current=number, previous=self.current, canaries=())

    def _rolled_back(self) -> "ModelRecord":
        if self.canaries:
            return self._changed(canaries=())
        if not self.previous:
            raise FailedPrecondition(
                f"model '{self.name}' has no version to go back to; promote one by its number"
            )
        return self._changed(current=self.previous, previous=self.current)

    def _changed(self, **update: object) -> "ModelRecord":
        return self.model_copy(update={**update, "change": self.change + 1})


def split(name: str) -> tuple[str, str]:
    """Return model and reference of `iris@3`; the reference of `iris` is empty."""
    model, _, reference = name.partition(AT)
    return model, reference


def check_name(name: str) -> str:
    """Return a name that a pushed model may have.

    Raises:
        InvalidArgument: It may not.
    """
    if not _fits(NAME, name):
        raise InvalidArgument(NAME_RULE, field="name")
    return name


def _fits(pattern: str, text: str) -> bool:
    return re.fullmatch(pattern.removeprefix("^").removesuffix("$"), text) is not None
