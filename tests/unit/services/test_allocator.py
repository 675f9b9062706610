"""What large messages leave is there for the next ones."""

import ctypes
import subprocess
import sys

import pytest


SCRIPT = """
import resource, sys
from services.allocator import keep_freed

keep_freed(int(sys.argv[1]))

def pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def message():
    body = bytes(5 * 2**20)
    return len(body + b"behind")

message()
before = pages()
for _ in range(30):
    message()
print(pages() - before)
"""


def pages_of_messages(bytes_kept: int) -> int:
    """Return how many pages the system made for 30 messages of 5 MiB, after a first one."""
    command = [sys.executable, "-c", SCRIPT, str(bytes_kept)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)  # noqa: S603
    return int(done.stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
def test_freed_memory_is_used_again() -> None:
    """Messages of 5 MiB need hardly a page from the system; without it, one for each 4 KiB."""
    assert pages_of_messages(64 * 2**20) < 3 * 5 * 2**20 // 4096
    assert pages_of_messages(0) > 30 * 5 * 2**20 // 4096
