"""Programs of torch.export, made on the spot: they compute what their module does, and no more."""

import io
import logging
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typing_extensions import override

from schemas.catalogue import ModelSpec
from schemas.errors import EngineFailed, InvalidArgument, ModelUnavailable
from schemas.values import Tensor
from services.workers.engine import Request
from services.workers.engines.torch_program import TorchProgramEngine
from tests.support import onnx_models as tiny


torch: Any = pytest.importorskip("torch", reason="the extra `torch` is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # torch warns of itself

X = {"name": "x", "kind": "tensor", "datatype": "FP32", "shape": [-1, 4]}
SCORES = {"name": "scores", "kind": "tensor", "datatype": "FP32", "shape": [-1, 3]}
TWICE = {"name": "twice", "kind": "tensor", "datatype": "FP32", "shape": [-1, 4]}


class Net(torch.nn.Module):  # type: ignore[misc]
    """Two outputs by name."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(4, 3)
        self.register_buffer("shift", torch.ones(3))
        self.constant = torch.arange(3).float()

    def forward(self, x: Any) -> dict[str, Any]:
        """Return scores [n, 3] and twice x [n, 4]."""
        scores = torch.softmax(self.layer(x) + self.shift + self.constant, -1)
        return {"scores": scores, "twice": 2 * x}


class Attentive(torch.nn.Module):  # type: ignore[misc]
    """Arguments by place and by name, outputs by place, a part without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(10, 8)
        self.layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, ids: Any, *, mask: Any) -> tuple[Any, Any]:
        """Return float [n, 8] and bool [n, t]."""
        hidden = self.layer(self.words(ids)) * mask[:, :, None]
        with torch.no_grad():
            known = mask > 0.5
        return hidden.mean(1) + ids.shape[1], known


def save(module: Any, path: Path, *args: Any, dynamic: Any, **kwargs: Any) -> None:
    """Export a module."""
    path.parent.mkdir(parents=True, exist_ok=True)
    program = torch.export.export(module.eval(), args, kwargs, dynamic_shapes=dynamic)
    torch.export.save(program, path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of programs."""
    folder = tmp_path_factory.mktemp("programs")
    rows, length = torch.export.Dim("rows"), torch.export.Dim("length")
    save(Net(), folder / "net.pt2", torch.randn(2, 4), dynamic={"x": {0: rows}})
    both = {0: rows, 1: length}
    save(
        Attentive(), folder / "attentive.pt2", torch.randint(0, 9, (2, 6)),
        mask=torch.ones(2, 6), dynamic={"ids": both, "mask": both},
    )  # fmt: skip
    return folder


def spec(source: str, inputs: list[Any], outputs: list[Any], **rest: Any) -> ModelSpec:
    """Return a catalogue entry."""
    return tiny.spec({**tiny.entry(source, inputs, outputs, **rest), "engine": "torch"})


def engine(folder: Path, *entry: Any, **rest: Any) -> TorchProgramEngine:
    """Return a loaded engine."""
    made = TorchProgramEngine(spec(*entry, **rest), folder)
    assert made.missing() is None
    made.load()
    return made


def tensor(array: Any, datatype: str = "FP32") -> Tensor:
    """Return a tensor of an array."""
    return Tensor(datatype=datatype, shape=array.shape, data=array.tobytes())


def array(found: Any, dtype: str = "<f4") -> Any:
    """Return an output as an array."""
    return np.frombuffer(found.data, dtype).reshape(found.shape)


def test_a_program_computes_what_its_module_does(folder: Path) -> None:
    """For the rows of several requests in one call."""
    made = engine(folder, "net.pt2", [X], [TWICE, SCORES], max_batch_size=8)
    rows = np.random.default_rng(0).standard_normal((3, 4), np.float32)
    first, second = made.infer([Request({"x": tensor(rows[:1])}), Request({"x": tensor(rows[1:])})])
    with torch.inference_mode():
        expected = Net().eval()(torch.from_numpy(rows))["scores"].numpy()
    found = np.concatenate([array(first["scores"]), array(second["scores"])])
    np.testing.assert_allclose(expected, found, atol=1e-6)
    np.testing.assert_array_equal(2 * rows[1:], array(second["twice"]))


def test_arguments_by_name_and_outputs_by_place(folder: Path) -> None:
    """A transformer layer with any length; `output_0` is a name."""
    ids = {"name": "ids", "kind": "tensor", "datatype": "INT64", "shape": [-1, -1]}
    mask = {"name": "mask", "kind": "tensor", "datatype": "FP32", "shape": [-1, -1]}
    mean = {
        "name": "mean",
        "tensor": "output_0",
        "kind": "tensor",
        "datatype": "FP32",
        "shape": [-1, 8],
    }
    known = {
        "name": "known",
        "tensor": "output_1",
        "kind": "tensor",
        "datatype": "BOOL",
        "shape": [-1, -1],
    }
    made = engine(folder, "attentive.pt2", [mask, ids], [known, mean])
    inputs = {
        "ids": tensor(np.arange(15, dtype="<i8").reshape(3, 5) % 10, "INT64"),
        "mask": tensor(np.ones((3, 5), "<f4")),
    }
    [found] = made.infer([Request(inputs)])
    assert ((3, 8), (3, 5)) == (found["mean"].shape, found["known"].shape)
    assert b"\1" * 15 == found["known"].data


@pytest.mark.parametrize(
    ("inputs", "outputs", "says"),
    [
        ([{**X, "name": "z"}], [SCORES], "no input 'z', only x"),
        ([{**X, "datatype": "FP64"}], [SCORES], "declared FP64, the program has float32"),
        ([{**X, "shape": [-1, 5]}], [SCORES], r"declared \[-1, 5\], the program has \[-1, 4\]"),
        ([X], [{**SCORES, "name": "other"}], "no output 'other', only scores, twice"),
        ([], [SCORES], "also needs the input 'x'"),
        ([{**X, "required": False}], [SCORES], "required tensor"),
    ],
)
def test_a_signature_that_is_not_the_programs(
    inputs: list[Any], outputs: list[Any], says: str, folder: Path
) -> None:
    """Is found when the model loads."""
    made = TorchProgramEngine(spec("net.pt2", inputs, outputs), folder)
    with pytest.raises(ModelUnavailable, match=says):
        made.load()


def test_bad_inputs(folder: Path) -> None:
    """Are refused by name; what the program cannot compute is its own failure."""
    made = engine(folder, "net.pt2", [X], [SCORES])
    with pytest.raises(InvalidArgument, match=r"shape \[-1, 4\]"):
        made.infer([Request({"x": tensor(np.ones((1, 5), "<f4"))})])
    made.model = lambda x: 1 / 0
    with pytest.raises(EngineFailed, match="could not compute"):
        made.infer([Request({"x": tensor(np.ones((1, 4), "<f4"))})])


@pytest.mark.parametrize(("device", "says"), [("cuda:200", "is not here"), ("gpu", "is one of")])
def test_a_device_that_is_not_here(device: str, says: str, folder: Path) -> None:
    """Is a reason not to serve; strict_device: false takes another."""
    entry = ("net.pt2", [X], [SCORES])
    made = TorchProgramEngine(spec(*entry, params={"device": device}), folder)
    with pytest.raises(ModelUnavailable, match=says):
        made.load()
    if device != "gpu":
        assert made.is_uncertain()
        lenient = engine(folder, *entry, params={"device": device, "strict_device": False})
        assert lenient.model is not None


class Bomb:
    """Leaves a trace when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    @override
    def __reduce__(self) -> tuple[Any, tuple[str, ...]]:
        return (os.mkdir, (self.path,))


def test_the_sample_inputs_of_torch_itself_run_code_and_ours_do_not(
    folder: Path, tmp_path: Path
) -> None:
    """The same file: torch.export.load unpickles it, the engine does not."""
    samples = io.BytesIO()
    torch.save((Bomb(str(tmp_path / "canary")),), samples)
    attack = tmp_path / "attack.pt2"
    with zipfile.ZipFile(folder / "net.pt2") as source, zipfile.ZipFile(attack, "w") as target:
        for info in source.infolist():
            is_sample = info.filename.endswith("sample_inputs/model.pt")
            target.writestr(info.filename, samples.getvalue() if is_sample else source.read(info))
    made = engine(tmp_path, "attack.pt2", [X], [SCORES])
    made.infer([Request({"x": tensor(np.ones((1, 4), "<f4"))})])
    assert not (tmp_path / "canary").exists()
    logging.disable(logging.CRITICAL)
    try:
        torch.export.load(str(attack))
    finally:
        logging.disable(logging.NOTSET)
    assert (tmp_path / "canary").exists()


def test_an_operator_of_torch_itself_is_any_function(folder: Path, tmp_path: Path) -> None:
    """`torch.os.system` is one to torch; the engine refuses it before torch sees it."""
    attack = tmp_path / "attack.pt2"
    with zipfile.ZipFile(folder / "net.pt2") as source, zipfile.ZipFile(attack, "w") as target:
        for info in source.infolist():
            content = source.read(info).replace(
                b"torch.ops.aten.linear.default", b"torch.os.system"
            )
            target.writestr(info.filename, content)
    made = TorchProgramEngine(spec("attack.pt2", [X], [SCORES]), tmp_path)
    with pytest.raises(ModelUnavailable, match=r"'torch\.os\.system' in 'target'"):
        made.load()


def test_a_pickle_is_no_program(tmp_path: Path) -> None:
    """What torch.save writes is not loaded."""
    torch.save(Net().state_dict(), tmp_path / "net.pt")
    made = TorchProgramEngine(spec("net.pt", [X], [SCORES]), tmp_path)
    with pytest.raises(ModelUnavailable, match=r"the archive holds 'data\.pkl'"):
        made.load()
