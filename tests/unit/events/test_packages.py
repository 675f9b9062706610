"""What is pushed: a folder with a model.yaml, a file that says enough of itself, or many."""

from pathlib import Path

import pytest
import yaml

from events.packages import FileDigest, Hints, packages, read_spec
from schemas.errors import InvalidArgument
from tests.support import hostile_models as hostile
from tests.support import onnx_models as tiny


SPEC = {
    "modality": "text",
    "engine": "onnx",
    "source": "model.onnx",
    "inputs": [tiny.port("X", "FP32", [-1, 4])],
    "outputs": [tiny.port("probabilities", "FP32", [-1, 3])],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of a model with a spec."""
    found = tmp_path / "iris"
    tiny.save(tiny.iris(), found / "model.onnx")
    (found / "model.yaml").write_text(yaml.safe_dump(SPEC))
    return found


def test_a_folder_with_a_spec(folder: Path) -> None:
    """Its name is the folder's; the spec is none of its files."""
    [package] = packages(folder)
    assert ("iris", ("model.onnx",), 0) == (
        package.name,
        package.paths,
        package.spec.max_batch_size,
    )
    assert "other" == packages(folder, "other")[0].name
    [part] = package.parts("model.onnx")
    assert (folder / "model.onnx").read_bytes() == part


def test_a_file_says_what_it_takes_and_gives(folder: Path) -> None:
    """Names, types and shapes; whether requests go together is the user's word."""
    [package] = packages(folder / "model.onnx", "iris", Hints("vision", 8))
    spec = package.spec
    assert ("vision", 8, "model.onnx") == (spec.modality, spec.max_batch_size, spec.source)
    [given] = spec.inputs
    assert ("x", "X", "FP32", (-1, 4)) == (given.name, given.tensor, given.datatype, given.shape)
    (folder / "model.yaml").unlink()
    assert "iris" == packages(folder)[0].name


def test_a_folder_of_versions_and_of_models(tmp_path: Path, folder: Path) -> None:
    """As other servers lay them out: numbers are versions, in their order."""
    for number in ("10", "9"):
        tiny.save(tiny.iris(), tmp_path / "served" / number / "model.onnx")
    found = packages(tmp_path / "served")
    assert [("served", "9"), ("served", "10")] == [(one.name, one.root.name) for one in found]
    assert ["iris", "served", "served"] == [one.name for one in packages(tmp_path)]
    with pytest.raises(InvalidArgument, match="have their own names"):
        packages(tmp_path, "one")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("!!python/object/apply:os.system ['touch canary']", "is not plain YAML"),
        ("!!python/name:os.system", "is not plain YAML"),
        ("a: &a [1, 2]\nb: [*a, *a]", "aliases are not read"),
        ("&a [*a]", "aliases are not read"),
        ("{", "is not plain YAML"),
        ("\0", "is not plain YAML"),
        ("[" * 5000, "is not plain YAML"),
        ("just text", "model.yaml"),
        ("modality: text", "model.yaml"),
        ("modality: smell\nengine: onnx\ninputs: []\noutputs: []", "'text', 'audio' or 'vision'"),
    ],
)
def test_a_spec_that_is_none(text: str, said: str, tmp_path: Path) -> None:
    """Tags run nothing, aliases multiply nothing, depth breaks nothing."""
    with pytest.raises(InvalidArgument, match=said):
        read_spec(text.encode())
    assert not Path("canary").exists()


def test_what_cannot_be_pushed(tmp_path: Path, folder: Path) -> None:
    """Nothing, a file of another kind, a pickle, a link, a file that is not safe."""
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InvalidArgument, match=r"neither a model\.yaml nor"):
        packages(empty)
    with pytest.raises(InvalidArgument, match="there is no folder"):
        packages(tmp_path / "nowhere")
    with pytest.raises(InvalidArgument, match=r"is no \.onnx file"):
        packages(folder / "model.yaml")
    (folder / "weights.pt").write_bytes(b"x")
    with pytest.raises(InvalidArgument, match="no kind of file"):
        packages(folder)
    (folder / "weights.pt").rename(folder / "weights.model")
    (folder / "weights.model").write_bytes(hostile.pickled(tmp_path / "canary"))
    with pytest.raises(InvalidArgument, match="is a pickle"):
        packages(folder)
    (folder / "weights.model").unlink()
    (folder / "secret.txt").symlink_to("/etc/hostname")
    with pytest.raises(InvalidArgument, match="is a symbolic link"):
        packages(folder)
    unsafe = tmp_path / "unsafe.onnx"
    unsafe.write_bytes(hostile.external("../secret"))
    with pytest.raises(InvalidArgument, match="keeps weights in other files"):
        packages(unsafe)


def test_parts_add_up_to_a_file() -> None:
    """Size and digest are of the whole."""
    digest = FileDigest("a.txt")
    digest.add(b"ab", "1" * 64)
    digest.add(b"c", "2" * 64)
    found = digest.file()
    assert ("a.txt", 3, ("1" * 64, "2" * 64)) == (found.path, found.size_bytes, found.parts)
    assert "ba7816bf" == found.sha256[:8]
