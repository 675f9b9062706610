"""Files of a model that are refused, each for what it is."""

import time
from pathlib import Path

import pytest

from schemas.artefacts import (
    FILES_MAX,
    TEXT_BYTES_MAX,
    check_content,
    check_path,
    check_paths,
    check_size,
)
from schemas.errors import InvalidArgument
from schemas.onnx_file import OnnxTensor, examine
from tests.support import hostile_models as hostile
from tests.support import onnx_models as tiny


@pytest.mark.parametrize("trick", hostile.CONTENTS)
def test_a_hostile_file_is_refused(trick: str) -> None:
    """With what it does, and soon."""
    path, data, text = hostile.CONTENTS[trick]
    begun = time.thread_time()
    with pytest.raises(InvalidArgument, match=text):
        check_content(path, data)
    assert time.thread_time() - begun < 10


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", ["m.onnx", "m.json", "m.safetensors", "m.model"])
def test_a_pickle_is_one_under_any_name(tmp_path: Path, protocol: int, name: str) -> None:
    """It is named for what it is, and what it would do is not done."""
    canary = tmp_path / "canary"
    with pytest.raises(InvalidArgument, match="is a pickle, which runs code"):
        check_content(name, hostile.pickled(canary, protocol))
    assert not canary.exists()


def test_what_holds_a_pickle_inside(tmp_path: Path) -> None:
    """As torch and NumPy write it."""
    canary = tmp_path / "canary"
    for data in (hostile.torch_file(canary), hostile.numpy_file(canary)):
        for name in ("m.json", "m.model", "m.safetensors"):
            with pytest.raises(InvalidArgument):
                check_content(name, data)
    assert not canary.exists()


@pytest.mark.parametrize("path", hostile.PATHS)
def test_a_path_that_is_none(path: str) -> None:
    """It leads elsewhere, hides, or names a kind of file that runs code."""
    with pytest.raises(InvalidArgument, match=r"is no path|no kind of file"):
        check_path(path)


@pytest.mark.parametrize(
    "paths", [["a.onnx", "A.onnx"], ["a.onnx", "a.onnx"], ["a.onnx/b.txt", "a.onnx"]]
)
def test_paths_that_no_folder_holds_at_once(paths: list[str]) -> None:
    """On any system, whatever it makes of case."""
    with pytest.raises(InvalidArgument, match="is there twice"):
        check_paths(paths)


def test_too_many_and_too_large() -> None:
    """Files, and bytes of one; text has a smaller limit than weights."""
    with pytest.raises(InvalidArgument, match="at most 256 files"):
        check_paths([f"{number}.txt" for number in range(FILES_MAX + 1)])
    with pytest.raises(InvalidArgument, match="at most 1000 are taken"):
        check_size("m.onnx", 1001, 1000)
    check_size("m.onnx", TEXT_BYTES_MAX + 1, 2 * TEXT_BYTES_MAX)
    with pytest.raises(InvalidArgument, match=f"at most {TEXT_BYTES_MAX}"):
        check_size("vocab.txt", TEXT_BYTES_MAX + 1, 2 * TEXT_BYTES_MAX)


def test_files_that_are_sound() -> None:
    """Tiny models, local functions, weights, words: nothing is in their way."""
    for model in (tiny.doubling(), tiny.picky(), tiny.iris(), tiny.identity("BYTES")):
        check_content("m.onnx", model.SerializeToString())
    header = {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "__metadata__": {}}
    check_content("m.safetensors", hostile.safetensors(header, b"1234"))
    check_content("labels.txt", b"cat\ndog\n")


def test_what_a_file_says_of_itself() -> None:
    """Inputs that are no weights, and outputs, with type and shape; -1 is any size."""
    found = examine(tiny.iris().SerializeToString())
    assert [OnnxTensor("X", "FP32", (-1, 4))] == found.inputs
    assert [OnnxTensor("probabilities", "FP32", (-1, 3))] == found.outputs
