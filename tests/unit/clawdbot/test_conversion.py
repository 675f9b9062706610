"""Models made of models: what is written beside them is true, and what differs is not written."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from clawdbot.cli.main import app
from clawdbot.conversion import Conversion, Quantization, arrays, convert, hf_source, quantize
from clawdbot.conversion.onnx_source import OnnxSource
from clawdbot.conversion.opening import open_source
from clawdbot.conversion.source import TensorInfo
from schemas.catalogue import ModelSpec
from schemas.edges import adaptation_of
from schemas.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from schemas.parity import Report, Tolerance
from schemas.values import Tensor
from services.workers.adapters import adapted
from services.workers.engine import Request
from services.workers.engines.onnx import OnnxEngine
from tests.support import onnx_models as tiny


pytest.importorskip("onnxruntime", reason="the extra `models` is not installed")

FEATURES, HIDDEN, CLASSES = 16, 64, 4


def classifier(scale: float = 1.0) -> Any:
    """Return a model of two layers: X [n, 16] to probabilities [n, 4]."""
    chance = np.random.default_rng(0)
    first = chance.standard_normal((FEATURES, HIDDEN)).astype("f4") * scale
    last = chance.standard_normal((HIDDEN, CLASSES)).astype("f4")
    nodes = [
        helper.make_node("MatMul", ["X", "first"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "last"], ["c"]),
        helper.make_node("Softmax", ["c"], ["probabilities"], axis=1),
    ]
    weights = [numpy_helper.from_array(first, "first"), numpy_helper.from_array(last, "last")]
    return tiny.model(
        nodes,
        {"X": ("FP32", ("n", FEATURES))},
        {"probabilities": ("FP32", ("n", CLASSES))},
        weights,
    )


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return the file of a classifier."""
    tiny.save(classifier(), tmp_path / "mlp.onnx")
    return tmp_path / "mlp.onnx"


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a file whose functions are sources, as `mine:...`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / "mine.py"
    sys.modules.pop("mine", None)


def labelled(model: Path, path: Path, wrong: int = 0) -> Path:
    """Write examples labelled as the model itself sees them, some of them otherwise."""
    rows = np.random.default_rng(1).standard_normal((100, FEATURES)).astype("f4")
    labels = OnnxSource(model).run({"X": rows})["probabilities"].argmax(axis=1)
    labels[:wrong] = (labels[:wrong] + 1) % CLASSES
    np.savez(path, X=rows, labels=labels)
    return path


def serve(folder: Path, rows: Any) -> Any:
    """Return what a worker gives for the model in a folder."""
    spec = ModelSpec.model_validate(yaml.safe_load((folder / "model.yaml").read_text()))
    engine = OnnxEngine(spec, folder)
    engine.load()
    name = spec.inputs[0].name
    [outputs] = engine.infer(
        [Request({name: Tensor(datatype="FP32", shape=rows.shape, data=rows.tobytes())})]
    )
    return {
        port.name: np.frombuffer(outputs[port.name].data, "<f4").reshape(outputs[port.name].shape)
        for port in spec.outputs
        if port.datatype == "FP32"
    }


def test_an_onnx_file_gets_a_catalogue_entry(model: Path, tmp_path: Path) -> None:
    """With the signature that the file has; a worker serves it as it stands."""
    report = convert(Conversion(str(model), tmp_path / "made"))
    assert report.passed
    spec = yaml.safe_load((tmp_path / "made" / "model.yaml").read_text())
    assert ("onnx", "model.onnx", 32) == (spec["engine"], spec["source"], spec["max_batch_size"])
    assert {
        "name": "x",
        "tensor": "X",
        "kind": "tensor",
        "datatype": "FP32",
        "shape": [-1, 16],
    } == (spec["inputs"][0])
    rows = np.ones((3, FEATURES), "f4")
    found = serve(tmp_path / "made", rows)["probabilities"]
    np.testing.assert_array_equal(OnnxSource(model).run({"X": rows})["probabilities"], found)
    stored = Report.model_validate_json((tmp_path / "made" / "parity.json").read_bytes())
    assert report == stored
    assert 1.0 == pytest.approx(stored.parity.outputs["probabilities"].cosine)


@pytest.mark.parametrize("method", ["dynamic", "static"])
def test_a_quantised_model_is_smaller_and_almost_the_same(
    method: Any, model: Path, tmp_path: Path
) -> None:
    """The report says by how much, side by side, and a worker serves it."""
    examples = labelled(model, tmp_path / "labelled.npz", wrong=10)
    wanted = Quantization(
        model, tmp_path / "small", method, labelled=examples, accuracy_drop_max=0.05
    )
    report = quantize(wanted)
    assert report.model_bytes < report.source_bytes
    assert (tmp_path / "small" / "model.onnx").stat().st_size == report.model_bytes
    output = report.parity.outputs["probabilities"]
    assert output.cosine is not None
    assert 0.99 <= output.cosine < 1
    assert report.accuracy is not None
    assert 0.9 == report.accuracy.source
    assert report.accuracy.source - report.accuracy.model <= 0.05
    assert [1, 16] == [speed.rows for speed in report.speed]
    assert all(speed.source_ms > 0 < speed.model_ms for speed in report.speed)
    assert ("random numbers, seed 0" if method == "static" else None) == report.calibration
    rows = np.ones((2, FEATURES), "f4")
    found = serve(tmp_path / "small", rows)["probabilities"]
    expected = OnnxSource(model).run({"X": rows})["probabilities"]
    np.testing.assert_allclose(expected, found, atol=0.1)
    assert sorted(["model.onnx", "model.yaml", "parity.json"]) == sorted(
        path.name for path in (tmp_path / "small").iterdir()
    )


def test_a_quantised_model_keeps_its_entry(model: Path, tmp_path: Path) -> None:
    """Names, words and limits of the model it was made of; how far it is from it is new."""
    convert(Conversion(str(model), tmp_path / "made", max_batch_size=7))
    path = tmp_path / "made" / "model.yaml"
    path.write_text(path.read_text() + "description: Mine\n")
    quantize(Quantization(tmp_path / "made", tmp_path / "small"))
    spec = yaml.safe_load((tmp_path / "small" / "model.yaml").read_text())
    assert (7, "Mine") == (spec["max_batch_size"], spec["description"])
    assert "quantize dynamic" == spec["parity"]["made"]


def test_what_differs_too_much_is_not_written(model: Path, tmp_path: Path) -> None:
    """Neither for its numbers nor for its accuracy; nothing is left behind."""
    before = sorted(tmp_path.iterdir())
    strict = Tolerance(atol=None, cosine_min=1.0)
    with pytest.raises(FailedPrecondition, match=r"not written: 'probabilities': cosine 0\.9\d+"):
        quantize(Quantization(model, tmp_path / "small", tolerance=strict))
    assert before == sorted(tmp_path.iterdir())


def test_lost_accuracy_is_a_reason_too(model: Path, tmp_path: Path) -> None:
    """A drop that is forbidden: here to be below what the model itself has, by nature."""
    examples = labelled(model, tmp_path / "labelled.npz")
    strict = Quantization(model, tmp_path / "small", labelled=examples, accuracy_drop_max=-0.5)
    with pytest.raises(FailedPrecondition, match=r"accuracy falls from 1\.0000 to \d\.\d+ on 100"):
        quantize(strict)
    assert [examples, model] == sorted(tmp_path.iterdir())


def test_a_model_without_matrices_cannot_be_quantised(tmp_path: Path) -> None:
    """It is said, instead of a copy under another name."""
    tiny.save(tiny.doubling(), tmp_path / "m.onnx")
    with pytest.raises(FailedPrecondition, match="nothing of this model can be quantised"):
        quantize(Quantization(tmp_path / "m.onnx", tmp_path / "small"))
    assert not (tmp_path / "small").exists()


def test_a_folder_is_replaced_only_on_request(model: Path, tmp_path: Path) -> None:
    """And never one that is no model's."""
    target = tmp_path / "made"
    convert(Conversion(str(model), target))
    with pytest.raises(AlreadyExists, match="--force"):
        convert(Conversion(str(model), target))
    (target / "old").touch()
    convert(Conversion(str(model), target, force=True))
    assert not (target / "old").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letters.txt").touch()
    with pytest.raises(InvalidArgument, match="not replaced"):
        convert(Conversion(str(model), tmp_path / "mine", force=True))
    assert (tmp_path / "mine" / "letters.txt").exists()


@pytest.mark.parametrize(
    ("saved", "says"),
    [
        ({"Y": np.ones((2, FEATURES), "f4")}, "no 'X', only Y"),
        ({"X": np.ones((2, FEATURES), "f8")}, "is FP64, not FP32"),
        ({"X": np.ones((2, 3), "f4")}, r"has the shape \[2, 3\]"),
        ({"X": np.ones((0, FEATURES), "f4")}, "at least a row"),
        ({"X": np.array([{"a": 1}], object)}, "cannot read"),
    ],
)
def test_examples_that_do_not_fit(saved: Any, says: str, model: Path, tmp_path: Path) -> None:
    """Are refused by name; objects in them are not unpickled."""
    np.savez(tmp_path / "x.npz", **saved)
    with pytest.raises(InvalidArgument, match=says):
        convert(Conversion(str(model), tmp_path / "made", examples=tmp_path / "x.npz"))


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("model.pkl", "a pickle, which runs code"),
        ("weights.pt", "a pickle, which runs code"),
        ("nowhere", "no file or folder 'nowhere'"),
        ("os:getcwd", "gives str; it must give"),
        ("nowhere_at_all:model", "ModuleNotFoundError"),
        ("mine:broken", "ZeroDivisionError"),
        ("mine:unfitted", "is not fitted"),
        ("mine.py", "a source is an .onnx or .pt2 file"),
        (".", "has no config.json"),
    ],
)
def test_what_is_no_source(source: str, says: str, code: Path) -> None:
    """Is told with what is one."""
    code.write_text(
        "def broken():\n    1 / 0\n\nclass unfitted:\n    def fit(self):\n        pass\n"
    )
    if source == "mine:unfitted":
        pytest.importorskip("skl2onnx", reason="the extra `convert` is not installed")
    with pytest.raises(InvalidArgument, match=says):
        open_source(source)


def test_distances() -> None:
    """Numbers, not-a-numbers, integers, texts, shapes."""
    one, tolerance = np.array([[1.0, 2.0]], "f4"), Tolerance()

    def apart(old: Any, new: Any, **allowed: Any) -> Any:
        return arrays.compare([np.array(old)], [np.array(new)], Tolerance(**allowed))

    same = arrays.compare([one, one], [one, one], tolerance)
    assert (4, 0.0, 0, True) == (same.elements, same.max_abs, same.differing, same.passed)
    worse = apart([1.0, 2.0], [1.0, 2.5])
    assert (0.5, 0.25, 1, False) == (worse.max_abs, worse.max_rel, worse.differing, worse.passed)
    assert apart([1.0, 2.0], [1.0, 2.5], atol=None, cosine_min=0.9).passed
    assert apart([np.nan, np.inf], [np.nan, np.inf]).passed
    assert not apart([1.0, 1.0], [1.0, np.nan], atol=None, cosine_min=0.0).passed
    assert not apart([[1.0]], [1.0]).passed
    assert (1, False) == ((ints := apart([1, 2], [1, 3])).differing, ints.passed)
    assert apart([1, 2], [1, 3], agreement_min=0.5).passed
    assert (None, True) == ((texts := apart(["a"], ["a"])).max_abs, texts.passed)
    assert apart([0.0], [0.0]).passed


def test_random_requests_agree_on_free_sizes() -> None:
    """Two inputs of one length have one length, in every request; the seed decides the rest."""
    inputs = [TensorInfo("ids", "INT64", ("n", "t")), TensorInfo("mask", "BOOL", ("n", "t", 3))]
    first, again = (list(arrays.random_requests(inputs, 5)) for _ in range(2))
    assert [(1, 4), (3, 7), (16, 5)] == [feeds["ids"].shape for feeds in first]
    assert all(feeds["ids"].shape == feeds["mask"].shape[:2] for feeds in first)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one["ids"], other["ids"])


def test_the_commands(model: Path, tmp_path: Path) -> None:
    """Reports as text or JSON; a model that is not written is exit status 2."""
    runner = CliRunner()
    made = runner.invoke(app, ["convert", str(model), "-o", str(tmp_path / "made")])
    assert 0 == made.exit_code, made.output
    assert "compared on 20 rows: random numbers, seed 0" in made.output
    small = ["quantize", str(tmp_path / "made"), "-o", str(tmp_path / "small"), "--json"]
    found = json.loads(runner.invoke(app, small).output)
    assert ("clawdbot.parity/1", True) == (found["format"], found["parity"]["passed"])
    refused = [*small[:3], str(tmp_path / "smaller"), "--json", "--cosine-min", "1"]
    failed = runner.invoke(app, refused)
    assert (2, False) == (failed.exit_code, (tmp_path / "smaller").exists())
    assert "FAILED_PRECONDITION" in failed.output


ESTIMATORS = """
import numpy as np
from sklearn.ensemble import GradientBoostingRegressor, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

rows = np.random.default_rng(0).standard_normal((120, 4)).astype("f4")

def words():
    labels = np.array(["a", "b", "c"])[rows[:, :3].argmax(1)]
    return make_pipeline(StandardScaler(), LogisticRegression()).fit(rows, labels)

def forest():
    return RandomForestClassifier(5, random_state=0).fit(rows, rows[:, 0] > 0)

def regressor():
    return GradientBoostingRegressor(n_estimators=5, random_state=0).fit(rows, rows.sum(1))

scaler = StandardScaler().fit(rows)
"""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "outputs"),
    [
        ("words", ["label", "probabilities"]),
        ("forest", ["label", "probabilities"]),
        ("regressor", ["variable"]),
        ("scaler", ["variable"]),
    ],
)
def test_estimators(name: str, outputs: list[str], code: Path, tmp_path: Path) -> None:
    """Classifiers, regressors, transformers and pipelines compute in a worker what they did."""
    pytest.importorskip("skl2onnx", reason="the extra `convert` is not installed")
    code.write_text(ESTIMATORS)
    report = convert(Conversion(f"mine:{name}", tmp_path / "made", opset=17))
    assert (outputs, 17) == (list(report.parity.outputs), report.parity.opset)
    rows = np.random.default_rng(3).standard_normal((5, 4)).astype("f4")
    expected = open_source(f"mine:{name}").run({"X": rows})[outputs[-1]]
    np.testing.assert_allclose(expected, serve(tmp_path / "made", rows)[outputs[-1]], atol=1e-4)


MODULES = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = torch.nn.Linear(16, 64), torch.nn.Linear(64, 4)
    def forward(self, x, *, scale):
        return {"scores": self.last(torch.relu(self.first(x))) * scale, "scale": scale}

def net():
    return Net(), (torch.randn(1, 16),), {"scale": torch.ones(1, 1)}

class Nested(torch.nn.Module):
    def forward(self, xs):
        return xs[0] + xs[1]

def nested():
    return torch.export.export(Nested(), ([torch.ones(2), torch.ones(2)],))

class Common(torch.nn.Module):
    def forward(self, linear):
        return {"relu": torch.relu(linear) * 2, "mul": torch.relu(linear)}

def common():
    return Common(), torch.randn(2, 3)

def program():
    return torch.export.export(torch.nn.Linear(3, 2).eval(), (torch.ones(2, 3),))
"""


@pytest.fixture
def torch() -> Any:
    """Return the library, or skip."""
    pytest.importorskip("onnxscript", reason="the extra `convert` is not installed")
    return pytest.importorskip("torch", reason="the extra `torch` is not installed")


@pytest.mark.filterwarnings("ignore")
def test_modules_of_torch(torch: Any, code: Path, tmp_path: Path) -> None:
    """With arguments by place and by name; any number of rows, although one was the example."""
    code.write_text(MODULES)
    report = convert(Conversion("mine:net", tmp_path / "made"))
    assert {"scores", "scale_out"} == set(report.parity.outputs)  # of two one name is new
    spec = yaml.safe_load((tmp_path / "made" / "model.yaml").read_text())
    assert [[-1, 16], [-1, 1]] == [port["shape"] for port in spec["inputs"]]
    assert 32 == spec["max_batch_size"]
    small = quantize(Quantization(tmp_path / "made", tmp_path / "small"))
    assert small.model_bytes < report.model_bytes


@pytest.mark.filterwarnings("ignore")
def test_programs_of_torch(torch: Any, code: Path, tmp_path: Path) -> None:
    """From a function or a .pt2 file; of fixed rows, which are then not joined."""
    code.write_text(MODULES)
    convert(Conversion("mine:program", tmp_path / "made"))
    spec = yaml.safe_load((tmp_path / "made" / "model.yaml").read_text())
    assert ([2, 3], None) == (spec["inputs"][0]["shape"], spec.get("max_batch_size"))
    program = torch.export.export(torch.nn.Linear(3, 2).eval(), (torch.ones(2, 3),))
    torch.export.save(program, tmp_path / "p.pt2")
    report = convert(Conversion(str(tmp_path / "p.pt2"), tmp_path / "file"))
    assert report.parity.source_sha256 is not None
    with pytest.raises(InvalidArgument, match="lists or dicts"):
        open_source("mine:nested")
    common = convert(Conversion("mine:common", tmp_path / "common"))  # names of operators
    assert ["relu", "mul"] == list(common.parity.outputs)


@pytest.mark.filterwarnings("ignore")
def test_folders_of_transformers(torch: Any, tmp_path: Path) -> None:
    """A tiny random BERT: tokens of any number and length."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=32,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    report = convert(Conversion(str(tmp_path / "bert"), tmp_path / "made"))
    assert ["embedding"] == list(report.parity.outputs)
    spec = yaml.safe_load((tmp_path / "made" / "model.yaml").read_text())
    assert ["input_ids", "attention_mask"] == [port["name"] for port in spec["inputs"]]
    assert ("token-embedding/1", None) == (spec["signature"], spec.get("vocabulary"))
    with pytest.raises(InvalidArgument, match="--task is one of"):
        open_source(str(tmp_path / "bert"), "dancing")
    (tmp_path / "bert" / "config.json").write_text('{"auto_map": {"AutoModel": "evil.Model"}}')
    with pytest.raises(InvalidArgument, match="names code"):
        open_source(str(tmp_path / "bert"))


@pytest.mark.filterwarnings("ignore")
def test_a_folder_brings_its_vocabulary(torch: Any, tmp_path: Path) -> None:
    """A text then goes in and a vector comes out, the same as in transformers."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "bert"
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "by", "##e", "!"]
    (tmp_path / "words.txt").write_text("\n".join(words), encoding="utf-8")
    tokenizer = transformers.BertTokenizer(str(tmp_path / "words.txt"))
    tokenizer.save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=32,
    )  # fmt: skip
    model = transformers.BertModel(config).eval()
    model.save_pretrained(folder)
    convert(Conversion(str(folder), tmp_path / "made"))
    quantize(Quantization(tmp_path / "made", tmp_path / "small"))
    for made in (tmp_path / "made", tmp_path / "small"):
        spec = ModelSpec.model_validate(yaml.safe_load((made / "model.yaml").read_text()))
        wanted = {port.name: adaptation_of(port) for port in spec.inputs}
        found = adapted(
            dict.fromkeys(wanted, "Hello, bye!"),
            {name: item for name, item in wanted.items() if item is not None},
            made,
        )
        engine = OnnxEngine(spec, made)
        engine.load()
        [outputs] = engine.infer([Request(found)])
        vector = np.frombuffer(outputs["embedding"].data, "<f4")
        with torch.inference_mode():
            hidden = model(**tokenizer("Hello, bye!", return_tensors="pt")).last_hidden_state[0]
        expected = torch.nn.functional.normalize(hidden.mean(0), dim=0).numpy()
        assert float(vector @ expected) > 0.99


def test_other_tokenizers_come_along_whole(tmp_path: Path) -> None:
    """As a tokenizer.json that workers take; none where they would not, or where there is none."""
    assert hf_source._vocabulary(tmp_path, 514) is None
    model = {"type": "BPE", "vocab": {"a": 0}, "merges": []}
    for pattern, taken in ((r"\s+", True), ("(a+)+", False)):
        step = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
        data = json.dumps({"model": model, "pre_tokenizer": step}).encode()
        (tmp_path / "tokenizer.json").write_bytes(data)
        found = hf_source._vocabulary(tmp_path, 514)
        assert taken == (found is not None)
        if found is not None:
            assert (data, 512, True) == (found.data, found.tokens_max, found.is_whole)


def test_weights_stay_in_the_file(tmp_path: Path) -> None:
    """What is written is one file, which a worker loads."""
    proto = classifier()
    assert TensorProto.DEFAULT == proto.graph.initializer[0].data_location
    tiny.save(proto, tmp_path / "m.onnx")
    convert(Conversion(str(tmp_path / "m.onnx"), tmp_path / "made"))
    assert serve(tmp_path / "made", np.ones((1, FEATURES), "f4"))
