"""Files that are whole or not there at all, whatever fails meanwhile."""

import os
from pathlib import Path


def write_durably(path: Path, data: bytes) -> None:
    """Replace a file; it is on disk when this returns. Makes missing folders.

    Raises:
        OSError: It cannot be written; what was there is still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
