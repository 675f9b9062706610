"""System shared memory: tensors that a client on this machine hands over without sending them.

Off unless an operator allows it: what is registered is read and written as the gateway's own user.
A region is copied with `pread` and `pwrite`, never mapped: a client that makes its object smaller
gets an error, where a mapping would end the process.

Source: Triton's system shared memory extension; shm_open(3), whose objects are files in /dev/shm.
"""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.errors import AlreadyExists, InvalidArgument, NotFound, ResourceExhausted
from schemas.inference_management import Region, RegionRequest
from services.errors import Unsupported


FOLDER = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory is
REGIONS_MAX = 1024
_KEY = re.compile(r"/?([A-Za-z0-9_.:-]{1,254})")
_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


@dataclass(frozen=True)
class _Open:
    """A region, and the object behind it."""

    region: Region
    fd: int


class Regions:
    """The regions that are registered with this gateway.

    Args:
        allowed: Whether there may be any.
        prefix: What the keys of objects begin with.
        bytes_max: Largest region.
        folder: Where the objects are.
    """

    def __init__(
        self, *, allowed: bool, prefix: str = "", bytes_max: int = 0, folder: Path = FOLDER
    ) -> None:
        self.allowed = allowed
        self._prefix = prefix
        self._bytes_max = bytes_max
        self._folder = folder
        self._open: dict[str, _Open] = {}

    def register(self, name: str, request: RegionRequest) -> None:
        """Give a part of a shared memory object a name.

        Raises:
            Unsupported: Shared memory is not allowed here.
            InvalidArgument: A key that is none, or a part the object does not have.
            NotFound: There is no such object.
            AlreadyExists: The name is taken.
            ResourceExhausted: There are too many regions.
        """
        self._check_allowed()
        if not _NAME.fullmatch(name):
            raise InvalidArgument("use 1 to 128 letters, digits and _ . : -", field="name")
        if name in self._open:
            raise AlreadyExists(f"the region '{name}' is registered already; unregister it first")
        if len(self._open) >= REGIONS_MAX:
            raise ResourceExhausted(f"there are {REGIONS_MAX} regions; unregister one")
        if request.byte_size > self._bytes_max:
            raise InvalidArgument(
                f"a region has at most {self._bytes_max} bytes", field="byte_size"
            )
        fd = self._opened(request.key)
        try:
            _check_size(fd, request.offset + request.byte_size, "byte_size")
        except InvalidArgument:
            os.close(fd)
            raise
        self._open[name] = _Open(Region(name=name, **request.model_dump()), fd)

    def status(self, name: str = "") -> tuple[Region, ...]:
        """Return the region of a name, or all of them.

        Raises:
            NotFound: No such region.
        """
        if name:
            return (self._find(name).region,)
        return tuple(item.region for _, item in sorted(self._open.items()))

    def unregister(self, name: str = "") -> None:
        """Forget the region of a name, if there is one, or all of them."""
        for key in [name] if name else list(self._open):
            found = self._open.pop(key, None)
            if found is not None:
                os.close(found.fd)

    def check(self, name: str) -> None:
        """Refuse a region before anything is computed for it.

        Raises:
            Unsupported: Shared memory is not allowed here.
            NotFound: No such region.
        """
        self._check_allowed()
        self._find(name)

    def read(self, place: "Place") -> bytes:
        """Return the bytes of a part of a region.

        Raises:
            InvalidArgument: It reaches past the region, or the object became smaller.
        """
        self._check_allowed()
        fd, at = self._where(place, place.byte_size)
        data = os.pread(fd, place.byte_size, at)
        if len(data) != place.byte_size:
            raise InvalidArgument(f"the object of region '{place.region}' became smaller")
        return data

    def write(self, place: "Place", data: bytes) -> None:
        """Put bytes into a part of a region.

        Raises:
            InvalidArgument: They do not fit, or the object became smaller.
        """
        if len(data) > place.byte_size:
            raise InvalidArgument(
                f"the output has {len(data)} bytes, its part of region '{place.region}' "
                f"{place.byte_size}"
            )
        fd, at = self._where(place, len(data))
        _check_size(fd, at + len(data), "region")
        os.pwrite(fd, data, at)

    def _where(self, place: "Place", size: int) -> tuple[int, int]:
        found = self._find(place.region)
        if place.offset + size > found.region.byte_size:
            raise InvalidArgument(
                f"{size} bytes at {place.offset} reach past the region '{place.region}' of "
                f"{found.region.byte_size}"
            )
        return found.fd, found.region.offset + place.offset

    def _find(self, name: str) -> _Open:
        found = self._open.get(name)
        if found is None:
            raise NotFound(f"there is no shared memory region '{name[:128]}' here")
        return found

    def _opened(self, key: str) -> int:
        """Open a shared memory object: a plain file directly in the folder, never a link."""
        match = _KEY.fullmatch(key)
        if match is None or match[1] in {".", ".."}:
            raise InvalidArgument("use 1 to 254 letters, digits and _ . : -", field="key")
        if not match[1].startswith(self._prefix):
            raise InvalidArgument(f"keys begin with '{self._prefix}' here", field="key")
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        with _as_ours(match[1]):
            fd = os.open(self._folder / match[1], flags)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise InvalidArgument("this is no shared memory object", field="key")
        return fd

    def _check_allowed(self) -> None:
        if not self.allowed:
            raise Unsupported("shared memory is not allowed here; CLAWDBOT_SHARED_MEMORY does")


NONE = Regions(allowed=False)
"""Where shared memory is not allowed."""


@dataclass(frozen=True)
class Place:
    """A part of a region where a tensor is, or is wanted."""

    region: str
    offset: int
    byte_size: int

    def parameters(self, size: int) -> dict[str, Any]:
        """Return what an answer says of an output that is there."""
        found: dict[str, Any] = {
            "shared_memory_region": self.region,
            "shared_memory_byte_size": size,
        }
        return {**found, "shared_memory_offset": self.offset} if self.offset else found


def take_place(params: dict[str, Any]) -> Place | None:
    """Take the place of a tensor out of its parameters; None when it is not in shared memory.

    Raises:
        InvalidArgument: A parameter of another type, or one is missing.
    """
    names = ("shared_memory_region", "shared_memory_offset", "shared_memory_byte_size")
    found = {name: params.pop(name) for name in names if name in params}
    if not found:
        return None
    region = found.get("shared_memory_region")
    if not isinstance(region, str) or not region:
        raise InvalidArgument("'shared_memory_region' must be the name of a region")
    numbers = [found.get(names[1], 0), found.get(names[2])]
    for name, number in zip(names[1:], numbers, strict=True):
        if type(number) is not int or number < 0:
            raise InvalidArgument(f"'{name}' must be a number of bytes")
    return Place(region, *numbers)


@contextmanager
def _as_ours(key: str) -> Iterator[None]:
    """Say the system's errors in our words."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound(f"there is no shared memory object '{key}' on this machine") from error
    except OSError as error:
        raise InvalidArgument(
            f"the shared memory object '{key}' cannot be opened: {error.strerror}", field="key"
        ) from error


def _check_size(fd: int, needed: int, field: str) -> None:
    size = os.fstat(fd).st_size
    if size < needed:
        raise InvalidArgument(f"the object has {size} bytes, {needed} are needed", field=field)
