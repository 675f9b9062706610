"""Adapters: what they compute, that a worker runs them by the plan, and that runs say so."""

import hashlib
import io
import random
from pathlib import Path
from typing import Any

import orjson
import pytest

from events.blobs import MemoryBlobStore
from events.commands import StartRun
from events.evolve import evolve
from events.memo import MemoryMemoStore
from events.run import decide
from events.state import RunState
from events.subjects import RunKey
from events.subjects import infer as infer_subject
from schemas import wav
from schemas.catalogue import Catalogue
from schemas.compiler import compile_plan
from schemas.errors import InvalidArgument, ModelUnavailable
from schemas.messages import TaskResult, unpack
from schemas.plan import Adaptation
from schemas.signatures import (
    CONTENTS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    TOKENIZER_ADAPTER,
    adapter_params,
)
from schemas.values import Binary, Tensor, from_json, from_wire, to_json, to_wire
from schemas.workflow import parse_definition
from services.micro import Asked
from services.orchestrator.messages import task_of
from services.runtime import Delivery
from services.workers import wordpiece
from services.workers.adapters import ADAPTERS
from services.workers.adapters import adapted as adapted_in
from services.workers.attempts import Attempts
from services.workers.handlers import Handlers, Means
from services.workers.models import Capacity, Models
from services.workers.remembered import Remembered
from services.workers.tally import Tally
from tests.support import onnx_models as tiny
from tests.support.clock import ManualClock


np = pytest.importorskip("numpy", reason="the extra `models` is not installed")
pillow = pytest.importorskip("PIL.Image", reason="the extra `models` is not installed")


def adapted(
    inputs: dict[str, Any], wanted: dict[str, Adaptation], folder: Path | None = None
) -> dict[str, Any]:
    """Return inputs with what the plan says done to them."""
    return adapted_in(inputs, wanted, folder or Path())


def picture(width: int, height: int, *, mode: str = "RGB", form: str = "PNG") -> Binary:
    """Return an image: left half red, right half blue."""
    image = pillow.new(mode, (width, height), (255, 0, 0))
    image.paste((0, 0, 255), (width // 2, 0, width, height))
    buffer = io.BytesIO()
    image.save(buffer, form)
    return Binary(media_type=f"image/{form.lower()}", data=buffer.getvalue())


def pixels(content: str, *shape: int) -> dict[str, Adaptation]:
    """Return how an input is made of an image."""
    params = adapter_params(content, shape)
    return {"x": Adaptation(adapter="image-to-pixels/1", params=params)}


def array(tensor: Tensor) -> Any:
    """Return a tensor as an array."""
    return np.frombuffer(tensor.data, "<f4").reshape(tensor.shape)


@pytest.mark.parametrize(("width", "height"), [(20, 20), (80, 40), (40, 80), (16, 200)])
def test_images_are_covered_and_cut(width: int, height: int) -> None:
    """Whatever their form: the middle, all of the shorter side, channels first, normalised."""
    found = adapted({"x": picture(width, height)}, pixels("pixels/imagenet", -1, 3, 16, 20))["x"]
    assert ("FP32", (1, 3, 16, 20)) == (found.datatype, found.shape)
    values = array(found)[0] * np.array(IMAGENET_STD)[:, None, None]
    values += np.array(IMAGENET_MEAN)[:, None, None]
    np.testing.assert_allclose([1, 0, 0], values[:, 8, 2], atol=1e-5)
    np.testing.assert_allclose([0, 0, 1], values[:, 8, -3], atol=1e-5)


def test_an_image_of_any_size_stays_as_it_is() -> None:
    """Where the port declares none; every pixel by itself."""
    found = array(adapted({"x": picture(10, 8)}, pixels("pixels/unit", -1, 3, -1, -1))["x"])
    assert (1, 3, 8, 10) == found.shape
    np.testing.assert_array_equal(np.ones((8, 5)), found[0, 0, :, :5])
    np.testing.assert_array_equal(np.ones((8, 5)), found[0, 2, :, 5:])


def test_sound_becomes_samples() -> None:
    """Mono at 16 kHz, whatever it was."""
    rate = 8000
    tone = np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    file = wav.encode((tone * 32767).astype("<i2").tobytes(), rate)
    wanted = {"x": Adaptation(adapter="audio-to-samples/1", params={"rate_hz": 16_000})}
    found = adapted({"x": Binary(media_type="audio/wav", data=file)}, wanted)["x"]
    assert (1, 16_000) == found.shape
    spectrum = np.abs(np.fft.rfft(array(found)[0]))
    assert 440 == spectrum.argmax()


def test_what_is_no_file_passes() -> None:
    """A tensor is what an adapter would make; other inputs are nobody's business."""
    tensor = Tensor(datatype="FP32", shape=(1,), data=bytes(4))
    inputs = {"x": tensor, "y": picture(10, 10)}
    assert inputs == adapted(inputs, pixels("pixels/unit", -1, 3, 4, 4))
    assert {} == adapted({}, pixels("pixels/unit", -1, 3, 4, 4))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "1 to 20971520 are allowed"),
        (b"no image", "not an image we can read"),
        (picture(40, 40).data[:60], "damaged or incomplete|not an image"),
    ],
)
def test_files_that_cannot_be_read(data: bytes, says: str) -> None:
    """Are the input's fault, by its name."""
    with pytest.raises(InvalidArgument, match=says) as caught:
        adapted({"x": Binary(media_type="image/png", data=data)}, pixels("pixels/unit", 1, 3, 4, 4))
    assert "inputs.x" == caught.value.field


def test_a_worker_that_is_too_old() -> None:
    """Another may know the adapter: it is tried again."""
    wanted = {"x": Adaptation(adapter="image-to-pixels/2")}
    with pytest.raises(ModelUnavailable, match="does not know the adapter image-to-pixels/2"):
        adapted({"x": picture(10, 10)}, wanted)


def test_every_adapter_of_the_library_is_here() -> None:
    """And none that the library does not name."""
    named = {item.adapter for item in CONTENTS.values() if item.adapter}
    assert {*named, TOKENIZER_ADAPTER} == set(ADAPTERS)


def catalogue(folder: Path) -> Catalogue:
    """Return a catalogue of a model that gives the mean of each channel."""
    node = tiny.onnx.helper.make_node("ReduceMean", ["pixels"], ["scores"], axes=[2, 3], keepdims=0)
    shape = ("n", 3, 8, 8)
    proto = tiny.model([node], {"pixels": ("FP32", shape)}, {"scores": ("FP32", ("n", 3))})
    tiny.save(proto, folder / "mean.onnx")
    document = tiny.entry(
        "mean.onnx",
        [tiny.port("pixels", "FP32", [-1, 3, 8, 8])],
        [tiny.port("scores", "FP32", [-1, 3])],
        signature="image-classification-unit/1",
        max_batch_size=4,
    )
    return Catalogue.model_validate({"models": {"mean": document}})


def started(known: Catalogue, value: Any) -> RunState:
    """Return a run of one node that has begun."""
    node = {"id": "look", "type": "model", "params": {"model": "mean"}, "memo": True}
    plan = compile_plan(parse_definition({"nodes": [node], "edges": []}), known)
    state: RunState | None = None
    for event in decide(None, StartRun("w", 1, "d", plan, {"pixels": value}, "i", "c", 0.0)):
        state = evolve(state, event)
    assert state is not None
    return state


def hands(models: Models) -> Handlers:
    """Return a worker's handlers."""
    clock, blobs = ManualClock(0.0), MemoryBlobStore()
    remembered = Remembered(MemoryMemoStore(), blobs, models, clock)
    means = Means("w", models, remembered, blobs, Attempts(clock), Tally("w", clock), clock)
    return Handlers(means)


async def test_an_inference_that_no_log_keeps_is_adapted_too(tmp_path: Path) -> None:
    """By what the model's entry says, as there is no plan; a file that is no image is its fault."""
    models = Models(
        catalogue(tmp_path), "text", tmp_path, allow_fallback=True, capacity=Capacity(1)
    )
    subject = infer_subject("default", "text", "mean")
    wire = orjson.dumps({"inputs": {"pixels": to_json(to_wire(picture(16, 8)))}})
    answer = await hands(models).infer(Asked(subject, {}, wire))
    found = from_wire(from_json(orjson.loads(bytes(answer.body))["outputs"])["scores"])
    np.testing.assert_allclose([[0.5, 0.0, 0.5]], array(found), atol=0.05)
    raw = await hands(models).infer(
        Asked(subject, {"Content-Type": "image/png"}, picture(16, 8).data)
    )
    assert answer.body == raw.body
    with pytest.raises(InvalidArgument, match="not an image we can read"):
        await hands(models).infer(Asked(subject, {"Content-Type": "image/png"}, b"no image"))
    models.close()


async def test_a_worker_adapts_by_the_plan(tmp_path: Path) -> None:
    """From the workflow to the result: the run's image, the tensor, the model's answer."""
    known = catalogue(tmp_path)
    state = started(known, to_wire(picture(16, 8)))
    models = Models(known, "text", tmp_path, allow_fallback=True, capacity=Capacity(1))
    out = task_of(RunKey("default", "r"), state, "look", "")
    delivery = Delivery(out.subject, out.data, {}, sequence=1, count=1)
    [answer] = await hands(models).task(delivery)
    models.close()
    result = unpack(TaskResult, answer.data)
    assert result.error is None, result.error
    assert result.outputs is not None
    scores = array(from_wire(result.outputs["scores"]))
    np.testing.assert_allclose([[0.5, 0.0, 0.5]], scores, atol=0.05)


def test_a_result_is_remembered_with_its_adapters(tmp_path: Path) -> None:
    """The same file is another input where it is made into something else."""
    from schemas.messages import Task  # noqa: PLC0415 - one use

    known = catalogue(tmp_path)
    models = Models(known, "text", tmp_path, allow_fallback=True, capacity=Capacity(1))
    remembered = Remembered(MemoryMemoStore(), MemoryBlobStore(), models, ManualClock(0.0))
    out = task_of(RunKey("default", "r"), started(known, to_wire(picture(8, 8))), "look", "")
    task = unpack(Task, out.data)
    assert "image-to-pixels/1" == task.adapt["pixels"].adapter
    plain = task.model_copy(update={"adapt": {}})
    assert remembered._digest(task) != remembered._digest(plain)
    models.close()


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "un", "##aff", "##able", "hello", "!", "[", "]", "sep",
         "cafe", "\u4f60", "##s", "a"]  # fmt: skip


def vocabulary(folder: Path, **more: Any) -> dict[str, Adaptation]:
    """Write a vocabulary; return how two inputs are made of a text."""
    (folder / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    sha256 = hashlib.sha256((folder / "vocab.txt").read_bytes()).hexdigest()
    told = {"path": "vocab.txt", "sha256": sha256, "lower_case": True, "tokens_max": 8, **more}
    return {
        name: Adaptation(adapter="text-to-tokens/1", params={"part": part, **told})
        for name, part in (("x", "ids"), ("mask", "mask"))
    }


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello, unaffable!", [7, 1, 4, 5, 6, 8]),
        ("Caf\u00e9s\u4f60", [12, 14, 13]),
        ("a\u0000\u200b a", [15, 15]),
        ("[SEP]", [9, 11, 10]),
        ("xyz", [1]),
        ("a" * 101, [1]),
        ("", []),
        ("a " * 50, [15] * 6),
    ],
)
def test_a_text_becomes_tokens(text: str, ids: list[int], tmp_path: Path) -> None:
    """Between a start and an end that no text can say; as many as the model reads."""
    found = adapted({"x": text, "mask": text}, vocabulary(tmp_path), tmp_path)
    read = [np.frombuffer(found[name].data, "<i8").tolist() for name in ("x", "mask")]
    assert [[2, *ids, 3], [1] * (len(ids) + 2)] == read
    assert (1, len(ids) + 2) == found["x"].shape


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sha256": "0" * 64}, "not the one that the catalogue names"),
        ({"path": "absent.txt"}, "there is no file 'absent.txt'"),
        ({"path": "../vocab.txt"}, "below the models directory"),
    ],
)
def test_a_vocabulary_that_is_another(change: Any, says: str, tmp_path: Path) -> None:
    """Is not read: the plan says which one it was."""
    wanted = vocabulary(tmp_path, **change)
    with pytest.raises(ModelUnavailable, match=says):
        adapted({"x": "hello"}, wanted, tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_tokens_are_those_of_the_library(tmp_path: Path) -> None:
    """Of transformers, over texts of every sort."""
    transformers = pytest.importorskip("transformers", reason="the extra `torch` is not installed")
    chance = random.Random(0)
    signs = "\u4f60\u597d\u3042\u2019\u20ac"
    letters = f"abcdeABC\u00e9\u00c4\u00df\u0130 \t.,!?-'$^`12\u00a0\ufffd\u200d{signs}"
    pieces = sorted({*f"abcdei.,!?-'$^`12\u00df{signs}"})
    words = [*pieces, *(f"##{piece}" for piece in pieces), "ab", "##cd", "abc", "##de"]
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]), encoding="utf-8"
    )
    data = (tmp_path / "vocab.txt").read_bytes()
    for lower_case in (True, False):
        theirs = transformers.BertTokenizer(str(tmp_path / "vocab.txt"), do_lower_case=lower_case)
        ours = wordpiece.vocabulary(tmp_path, "vocab.txt", hashlib.sha256(data).hexdigest())
        for _ in range(300):
            text = "".join(chance.choices(letters, k=chance.randint(0, 30)))
            found = wordpiece.tokens(text, ours, lower_case=lower_case, tokens_max=512)
            assert theirs(text)["input_ids"] == found, repr(text)
