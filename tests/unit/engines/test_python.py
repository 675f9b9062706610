"""Python functions as models: what is allowed, what goes in, what comes out."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.catalogue import Catalogue, ModelSpec
from schemas.errors import EngineFailed, FailedPrecondition, InvalidArgument, ModelUnavailable
from schemas.values import Binary, Tensor
from services.workers.engine import Request
from services.workers.engines.python import PythonEngine, parse_allowed
from services.workers.models import Capacity, Models


CODE = '''
"""Functions that a package brings."""
import numpy as np
from schemas.errors import InvalidArgument

calls = []

def shout(text, *, mark="!"):
    return text.upper() + mark

def parts(text):
    return {"first": text[0], "count": np.int64(len(text))}

def pair(text):
    return text[0], len(text)

def scale(x, by=2.0):
    calls.append(len(x))
    return x * np.float32(by)

def wide(x):
    return x.astype("f8")

def picky(text):
    raise InvalidArgument("not that", field="inputs.text")

def broken(text):
    raise OSError("/secret/path")

def size(picture):
    return len(picture.data)

class Estimator:
    def __init__(self, folder):
        self.weights = np.loadtxt(folder / "weights.txt", dtype="f4")
    def predict(self, X):
        return X @ self.weights

constant = 7
'''
TEXT = {"name": "text", "kind": "text"}
X = {"name": "x", "kind": "tensor", "datatype": "FP32", "shape": [-1, 2]}
Y = {"name": "y", "kind": "tensor", "datatype": "FP32", "shape": [-1, 2]}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return the name of a module that is installed."""
    site = tmp_path / "site"
    (site / "callables_here").mkdir(parents=True)
    (site / "callables_here" / "__init__.py").touch()
    (site / "callables_here" / "all.py").write_text(CODE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(site))
    yield "callables_here.all"
    for name in [name for name in sys.modules if name.startswith("callables_here")]:
        del sys.modules[name]


def spec(inputs: list[Any], outputs: list[Any], **rest: Any) -> ModelSpec:
    """Return a catalogue entry that may call the package."""
    params = {"allow": "callables_here", **rest.pop("params")}
    entry = {"modality": "text", "engine": "python", "inputs": inputs, "outputs": outputs}
    return ModelSpec.model_validate({**entry, "params": params, **rest})


def engine(tmp_path: Path, *ports: list[Any], **rest: Any) -> PythonEngine:
    """Return a loaded engine."""
    made = PythonEngine(spec(*ports, **rest), tmp_path / "models")
    assert made.missing() is None
    made.load()
    return made


def floats(*rows: tuple[float, float]) -> Tensor:
    """Return an FP32 tensor."""
    array = np.array(rows, "<f4")
    return Tensor(datatype="FP32", shape=array.shape, data=array.tobytes())


def test_a_function_of_text(package: str, tmp_path: Path) -> None:
    """Inputs and params go in by name; a request's own params win."""
    made = engine(tmp_path, [TEXT], [TEXT], params={"call": f"{package}:shout", "mark": "?"})
    batch = [Request({"text": "hi"}), Request({"text": "ho"}, {"mark": "."})]
    assert [{"text": "HI?"}, {"text": "HO."}] == made.infer(batch)


@pytest.mark.parametrize("name", ["parts", "pair"])
def test_many_outputs(name: str, package: str, tmp_path: Path) -> None:
    """By name in a mapping, or by place in a tuple; numbers of numpy become JSON."""
    outputs = [{"name": "first", "kind": "text"}, {"name": "count", "kind": "json"}]
    made = engine(tmp_path, [TEXT], outputs, params={"call": f"{package}:{name}"})
    [found] = made.infer([Request({"text": "abc"})])
    assert {"first": "a", "count": 3} == found
    assert int is type(found["count"])


async def test_rows_of_many_requests_are_one_call(package: str, tmp_path: Path) -> None:
    """With max_batch_size; those with other params are another call."""
    made = engine(
        tmp_path, [X], [Y], max_batch_size=8, params={"call": f"{package}:scale", "by": 3.0}
    )
    batch = [Request({"x": floats((1, 2))}), Request({"x": floats((3, 4), (5, 6))})]
    assert made.batch_key(batch[0]) == made.batch_key(batch[1])
    assert made.batch_key(Request(batch[0].inputs, {"by": 1.0})) != made.batch_key(batch[0])
    assert [{"y": floats((3, 6))}, {"y": floats((9, 12), (15, 18))}] == made.infer(batch)
    assert [3] == sys.modules[package].calls
    assert [{"y": floats((1, 2))}] == made.infer([Request(batch[0].inputs, {"by": 1.0})])


def test_an_estimator_is_made_once(package: str, tmp_path: Path) -> None:
    """From its folder of the models directory; its method takes arrays by position."""
    folder = tmp_path / "models" / "linear"
    folder.mkdir(parents=True)
    (folder / "weights.txt").write_text("1 2\n3 4\n")
    params = {"make": f"{package}:Estimator", "method": "predict"}
    made = engine(tmp_path, [X], [Y], max_batch_size=8, source="linear", params=params)
    assert [{"y": floats((4, 6))}] == made.infer([Request({"x": floats((1, 1))})])


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({}, "need 'call' or 'make'"),
        ({"call": "os.system"}, "need 'call' or 'make'"),
        ({"call": 7}, "need 'call' or 'make'"),
        ({"call": "a:b", "make": "a:b"}, "need 'call' or 'make'"),
        ({"call": "os:system"}, "do not allow the module 'os'; .*CLAWDBOT_PYTHON_ALLOW"),
        ({"call": "callables_here_too:run"}, "do not allow the module 'callables_here_too'"),
        ({"call": "nowhere:run", "allow": "nowhere"}, "not installed: nowhere"),
        ({"call": "callables_here.absent:run"}, "ModuleNotFoundError"),
        ({"call": "callables_here.all:absent"}, "AttributeError"),
        ({"call": "callables_here.all:constant"}, "is no function"),
        ({"call": "callables_here.all:shout", "volume": 3}, "unexpected keyword argument 'volume'"),
        ({"call": "callables_here.all:scale"}, "missing a required argument: 'x'"),
    ],
)
def test_what_is_not_called(
    params: dict[str, Any], says: str, package: str, tmp_path: Path
) -> None:
    """Is told when the model loads, or before."""
    made = PythonEngine(spec([TEXT], [TEXT], params=params), tmp_path / "models")
    with pytest.raises(ModelUnavailable, match=says):
        made.load()


def test_code_of_models_is_not_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although it could be imported, and a module of its name is allowed."""
    (tmp_path / "models" / "uploaded").mkdir(parents=True)
    (tmp_path / "models" / "uploaded" / "__init__.py").write_text("def run(text):\n    1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path / "models"))
    params = {"call": "uploaded:run", "allow": "uploaded"}
    made = PythonEngine(spec([TEXT], [TEXT], params=params), tmp_path / "models")
    assert "lies in the models directory" in (made.missing() or "")
    with pytest.raises(ModelUnavailable, match="code comes from installed packages only"):
        made.load()
    assert "uploaded" not in sys.modules


@pytest.mark.parametrize("source", ["../outside", "absent"])
def test_folders_are_below_the_models_directory(source: str, package: str, tmp_path: Path) -> None:
    """What makes a function gets no other folder."""
    (tmp_path / "outside").mkdir()
    params = {"make": f"{package}:Estimator", "method": "predict"}
    made = PythonEngine(spec([X], [Y], source=source, params=params), tmp_path / "models")
    with pytest.raises(ModelUnavailable, match="in the models directory"):
        made.load()


@pytest.mark.parametrize(
    ("name", "inputs", "kind", "says"),
    [
        ("picky", {"text": "a"}, InvalidArgument, "not that"),
        ("broken", {"text": "a"}, EngineFailed, "the function failed: OSError$"),
        ("shout", {"text": 7}, InvalidArgument, "must be text"),
        ("shout", {}, InvalidArgument, "must be text"),
        ("parts", {"text": "a"}, EngineFailed, "declared text, not dict"),
    ],
)
def test_errors(
    name: str,
    inputs: dict[str, Any],
    kind: type[Exception],
    says: str,
    package: str,
    tmp_path: Path,
) -> None:
    """Of the input by name; of the function without what only a log should hold."""
    made = engine(tmp_path, [TEXT], [TEXT], params={"call": f"{package}:{name}"})
    with pytest.raises(kind, match=says):
        made.infer([Request(inputs)])


def test_an_output_of_another_datatype(package: str, tmp_path: Path) -> None:
    """Is not handed on under the declared name."""
    made = engine(tmp_path, [X], [Y], params={"call": f"{package}:wide"})
    with pytest.raises(EngineFailed, match="'y' is FP64, declared FP32"):
        made.infer([Request({"x": floats((1, 2))})])


def test_files_go_in_as_they_are(package: str, tmp_path: Path) -> None:
    """With their media type; a text in their place is refused."""
    ports = [{"name": "picture", "kind": "image"}], [{"name": "size", "kind": "json"}]
    made = engine(tmp_path, *ports, params={"call": f"{package}:size"})
    file = Binary(media_type="image/png", data=b"abc")
    assert [{"size": 3}] == made.infer([Request({"picture": file})])
    with pytest.raises(InvalidArgument, match="must be a file"):
        made.infer([Request({"picture": "abc"})])


async def test_only_the_operator_allows(package: str, tmp_path: Path) -> None:
    """What the catalogue or a request says of `allow` counts for nothing."""
    document = spec([TEXT], [TEXT], params={"call": f"{package}:shout"}).model_dump()
    known = Catalogue.model_validate({"models": {"shout": document}})

    def held(allow: str) -> Models:
        settings = {"python": {"allow": allow}}
        return Models(
            known, "text", tmp_path / "models", allow_fallback=True, capacity=Capacity(),
            engine_settings=settings,
        )  # fmt: skip

    refused, served = held("other"), held("callables_here.all, other")
    with pytest.raises(ModelUnavailable, match="do not allow"):
        await refused.infer("shout", Request({"text": "hi"}, {"allow": "callables_here"}))
    assert {"text": "HI!"} == (await served.infer("shout", Request({"text": "hi"}))).outputs
    refused.close()
    served.close()


def test_the_setting_is_read_at_start() -> None:
    """Names of modules; anything else is refused."""
    assert ("a.b", "c") == parse_allowed(" a.b, c ,")
    with pytest.raises(FailedPrecondition, match="no name of a module"):
        parse_allowed("a.b:c")
