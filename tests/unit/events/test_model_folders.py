"""A model's files on disk: no link is followed, nothing is half there."""

import hashlib
import os
from pathlib import Path

import pytest

from events.model_folders import draft, is_whole, keep, open_plain, plain_files, write_file
from schemas.errors import DataLoss, InvalidArgument
from schemas.repository import ModelFile


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Return a folder that a model must not reach, with a secret."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret.txt").write_text("secret")
    return folder


@pytest.fixture
def inside(tmp_path: Path) -> Path:
    """Return a model's folder."""
    folder = tmp_path / "model"
    (folder / "words").mkdir(parents=True)
    (folder / "words" / "vocab.txt").write_text("a\nb\n")
    (folder / "config.json").write_text("{}")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x.txt").write_text("not of the model")
    return folder


def test_all_plain_files_are_listed(inside: Path) -> None:
    """In order; what is hidden is none of the model."""
    assert ["config.json", "words/vocab.txt"] == plain_files(inside)


@pytest.mark.parametrize("trick", ["file", "folder", "hard", "pipe"])
def test_a_link_is_refused_wherever_it_leads(inside: Path, outside: Path, trick: str) -> None:
    """Symbolic or hard, of a file or a folder; and what is no file at all."""
    match trick:
        case "file":
            (inside / "x.txt").symlink_to(outside / "secret.txt")
        case "folder":
            (inside / "x").symlink_to(outside)
        case "hard":
            (inside / "x.txt").hardlink_to(outside / "secret.txt")
        case _:
            os.mkfifo(inside / "x.txt")
    with pytest.raises(InvalidArgument, match=r"'x(\.txt)?' is (a (symbolic|hard) link|no plain)"):
        plain_files(inside)


@pytest.mark.parametrize("trick", ["file", "parent", "hard", "pipe", "folder"])
def test_nothing_is_opened_through_a_link(inside: Path, outside: Path, trick: str) -> None:
    """Not even one that came after the folder was listed; a pipe does not block."""
    path = "x.txt"
    match trick:
        case "file":
            (inside / "x.txt").symlink_to(outside / "secret.txt")
        case "parent":
            (inside / "x").symlink_to(outside)
            path = "x/secret.txt"
        case "hard":
            (inside / "x.txt").hardlink_to(outside / "secret.txt")
        case "pipe":
            os.mkfifo(inside / "x.txt")
        case _:
            (inside / "x.txt").mkdir()
    with pytest.raises(InvalidArgument, match=f"'{path}' is"):
        open_plain(inside, path)


@pytest.mark.parametrize("path", ["../outside/secret.txt", "/etc/passwd.txt", "a/../../x.txt"])
def test_nothing_is_opened_or_written_outside(inside: Path, outside: Path, path: str) -> None:
    """A path of an index is no more trusted than one of a client."""
    with pytest.raises(InvalidArgument, match="is no path"):
        open_plain(inside, path)
    with pytest.raises(InvalidArgument, match="is no path"):
        write_file(inside, file(b"x", path), [b"x"])
    assert ["secret.txt"] == [item.name for item in outside.iterdir()]


def file(data: bytes, path: str = "new.txt") -> ModelFile:
    """Return what the index has of a file."""
    digest = hashlib.sha256(data).hexdigest()
    return ModelFile(path=path, size_bytes=len(data), sha256=digest, parts=(digest,))


def test_a_file_is_written_where_none_was(inside: Path, outside: Path) -> None:
    """A link that waits in its place is not followed."""
    write_file(inside, file(b"ab"), [b"a", b"b"])
    assert b"ab" == (inside / "new.txt").read_bytes()
    (inside / "trap.txt").symlink_to(outside / "secret.txt")
    with pytest.raises(FileExistsError):
        write_file(inside, file(b"x", "trap.txt"), [b"x"])
    assert "secret" == (outside / "secret.txt").read_text()


def test_what_is_not_the_file_is_lost_data(inside: Path) -> None:
    """Other bytes, or more of them."""
    for parts in ([b"x"], [b"a"], [b"ab", b"c"]):
        with pytest.raises(DataLoss, match="its digest differs"):
            write_file(inside, file(b"ab", f"{len(parts[0])}{parts[-1][0]}.txt"), parts)


def test_a_draft_is_kept_whole_or_gone(tmp_path: Path) -> None:
    """Whoever comes second finds the folder of the first."""
    cache = tmp_path / "cache"
    with draft(cache) as fresh:
        (fresh / "x.txt").write_text("lost")
    assert [] == list(cache.iterdir())
    for text in ("first", "second"):
        with draft(cache) as fresh:
            (fresh / "x.txt").write_text(text)
            keep(fresh, cache / "digest")
    assert ["digest"] == [item.name for item in cache.iterdir()]
    assert "first" == (cache / "digest" / "x.txt").read_text()


def test_a_fetched_folder_that_was_touched_is_not_whole(inside: Path, outside: Path) -> None:
    """Altered, missing, or replaced by a link to the same bytes."""
    known = [file(b"{}", "config.json")]
    assert is_whole(inside, known)
    target = inside / "config.json"
    target.write_text("[]")
    assert not is_whole(inside, known)
    target.unlink()
    assert not is_whole(inside, known)
    (outside / "same.json").write_text("{}")
    target.symlink_to(outside / "same.json")
    assert not is_whole(inside, known)
