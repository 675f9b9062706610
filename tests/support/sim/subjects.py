"""Subjects with wildcards, and header blocks, as the server reads them."""

from functools import lru_cache


def is_literal(subject: str) -> bool:
    """Tell whether a subject has no wildcard."""
    return not any(token in {"*", ">"} for token in subject.split("."))


@lru_cache(maxsize=4096)
def stem(pattern: str) -> str:
    """Return the tokens of a pattern before its first wildcard."""
    tokens = pattern.split(".")
    first = next(place for place, token in enumerate(tokens) if token in {"*", ">"})
    return ".".join(tokens[:first])


@lru_cache(maxsize=65536)
def fits(pattern: str, subject: str) -> bool:
    """Tell whether a subject matches a pattern."""
    wanted, given = pattern.split("."), subject.split(".")
    if wanted[-1] == ">":
        if len(given) < len(wanted):
            return False
        wanted, given = wanted[:-1], given[: len(wanted) - 1]
    return len(wanted) == len(given) and all(
        mine in {"*", theirs} for mine, theirs in zip(wanted, given, strict=True)
    )


def overlap(left: str, right: str) -> bool:
    """Tell whether two patterns have a subject in common."""
    ours, theirs = left.split("."), right.split(".")
    for mine, other in zip(ours, theirs, strict=False):
        if ">" in {mine, other}:
            return True
        if mine != other and "*" not in {mine, other}:
            return False
    return len(ours) == len(theirs)


def read_head(head: bytes) -> dict[str, str]:
    """Return the headers of a block; the first of a name counts."""
    found: dict[str, str] = {}
    for line in head.decode(errors="replace").split("\r\n")[1:]:
        name, colon, value = line.partition(":")
        if colon:
            found.setdefault(name.strip(), value.strip())
    return found


def with_lines(head: bytes, *lines: str) -> bytes:
    """Return a block with lines more at its end."""
    start = head[:-2] if head else b"NATS/1.0\r\n"
    return start + "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n"


def without(head: bytes, prefix: str) -> bytes:
    """Return a block without the headers that begin with a prefix; empty if none is left."""
    lines = head.decode(errors="replace").split("\r\n")
    kept = [line for line in lines[1:] if line and not line.startswith(prefix)]
    return with_lines(b"", *kept) if kept else b""


def status(code: int, text: str = "", *lines: str) -> bytes:
    """Return the block of a status message."""
    first = f"NATS/1.0 {code} {text}".rstrip()
    return "\r\n".join([first, *lines, "", ""]).encode()
