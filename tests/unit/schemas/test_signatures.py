"""The library of signatures: held when a catalogue loads, and where nodes meet."""

from itertools import pairwise
from typing import Any

import pytest

from schemas.catalogue import Catalogue, parse
from schemas.compiler import compile_plan
from schemas.errors import InvalidArgument
from schemas.inputs import input_ports
from schemas.plan import Plan
from schemas.signatures import CONTENTS, IMAGENET_MEAN, SIGNATURES
from schemas.workflow import parse_definition


def tensor(name: str, datatype: str, *shape: int, **rest: Any) -> dict[str, Any]:
    """Return a port."""
    return {"name": name, "kind": "tensor", "datatype": datatype, "shape": list(shape), **rest}


def port(name: str, kind: str, **rest: Any) -> dict[str, Any]:
    """Return a port."""
    return {"name": name, "kind": kind, **rest}


def entry(inputs: list[Any], outputs: list[Any], signature: str = "", **rest: Any) -> Any:
    """Return a catalogue entry."""
    entry = {"modality": "vision", "engine": "onnx", "inputs": inputs, "outputs": outputs}
    return {**entry, "signature": signature, **rest}


PIXELS = tensor("pixels", "FP32", -1, 3, 224, 224)
SCORES = tensor("scores", "FP32", -1, 1000)
CLASSIFY = entry([PIXELS], [SCORES], "image-classification/1")
MODELS = {
    "classify": CLASSIFY,
    "camera": entry([port("text", "text")], [port("photo", "image"), port("note", "text")]),
    "listen": entry([tensor("samples", "FP32", 1, -1)],
                    [tensor("frames", "FP32", 1, -1, 32)], "acoustic-model/1"),
    "recorder": entry([port("text", "text")], [port("sound", "audio")]),
    "embed": entry([port("text", "text")], [tensor("embedding", "FP32", 1, 384)],
                   "text-embedding/1"),
    "double": entry([tensor("x", "FP64", -1, 2)], [tensor("y", "FP64", -1, 2)]),
    "narrow": entry([tensor("x", "FP64", -1, 3)], [tensor("y", "FP64", -1, 3)]),
    "near": entry([tensor("vector", "FP32", -1, 384, content="vector/embedding")],
                  [port("found", "json")]),
    "rank": entry([tensor("values", "FP32", -1, -1, content="scores/classes")],
                  [port("found", "json")]),
    "any": entry([port("document", "json")], [port("document", "json")]),
}  # fmt: skip


def compiled(*names: str, **inputs: str) -> Plan:
    """Compile a chain of models, the last one with explicit inputs."""
    nodes = [{"id": name, "type": "model", "params": {"model": name}} for name in names]
    if inputs:
        nodes[-1]["inputs"] = inputs
    edges = [{"source": one, "target": other} for one, other in pairwise(names)]
    definition = parse_definition({"nodes": nodes, "edges": edges})
    return compile_plan(definition, Catalogue.model_validate({"models": MODELS}))


def test_a_signature_gives_tensors_a_meaning() -> None:
    """The declared ports get the contents of their roles; others none."""
    spec = Catalogue.model_validate({"models": MODELS}).models["classify"]
    assert ["pixels/imagenet"] == [item.content for item in spec.inputs]
    assert ["scores/classes"] == [item.content for item in spec.outputs]


@pytest.mark.parametrize(
    ("document", "says"),
    [
        (entry([PIXELS], [SCORES], "image-classification/9"), "no signature 'image-classif"),
        (entry([], [SCORES], "image-classification/1"), "the input 'pixels', which is not decl"),
        (entry([PIXELS], [], "image-classification/1"), "the output 'scores', which is not decl"),
        (entry([port("pixels", "image")], [SCORES], "image-classification/1"), "kind tensor, not"),
        (entry([tensor("pixels", "UINT8", -1, 3, 8, 8)], [SCORES], "image-classification/1"),
         "a tensor of FP32, not UINT8"),
        (entry([tensor("pixels", "FP32", -1, 8, 8, 3)], [SCORES], "image-classification/1"),
         r"shape \[-1, 3, -1, -1\], not \[-1, 8, 8, 3\]"),
        (entry([{**PIXELS, "content": "pixels/unit"}], [SCORES], "image-classification/1"),
         "holds pixels/imagenet, not pixels/unit"),
        (entry([PIXELS, tensor("size", "INT64", 2)], [SCORES], "image-classification/1"),
         "has no input 'size'; declare it with required: false"),
        (entry([{**PIXELS, "content": "pixels/feet"}], [SCORES]), "no content 'pixels/feet'"),
        (entry([{**port("text", "text"), "content": "pixels/unit"}], []), "a tensor of FP32"),
    ],
)  # fmt: skip
def test_a_catalogue_that_breaks_a_signature(document: Any, says: str) -> None:
    """Is refused when it is loaded, by model and port."""
    import yaml  # noqa: PLC0415 - as an operator writes it

    with pytest.raises(InvalidArgument, match=says) as caught:
        parse(yaml.safe_dump({"models": {"mine": document}}))
    assert str(caught.value.field).startswith("models.mine")


def test_more_may_be_given_and_taken() -> None:
    """Other outputs, and inputs that nobody has to give."""
    size = tensor("size", "INT64", 2, required=False)
    document = entry([PIXELS, size], [SCORES, port("note", "text")], "image-classification/1")
    Catalogue.model_validate({"models": {"mine": document}})


def test_a_file_is_made_into_what_a_model_wants() -> None:
    """The plan says how, with the size that the port declares."""
    plan = compiled("camera", "classify")
    binding = plan.node("classify").bindings["pixels"]
    assert ("camera", "photo") == (binding.node, binding.output)
    assert binding.adapt is not None
    assert "image-to-pixels/1" == binding.adapt.adapter
    assert (224, 224) == (binding.adapt.params["height"], binding.adapt.params["width"])
    assert list(IMAGENET_MEAN) == binding.adapt.params["mean"]
    assert plan == Plan.model_validate_json(plan.model_dump_json())
    sound = compiled("recorder", "listen").node("listen").bindings["samples"]
    assert sound.adapt is not None
    assert ("audio-to-samples/1", 16_000) == (sound.adapt.adapter, sound.adapt.params["rate_hz"])


def test_a_runs_own_file_too() -> None:
    """The workflow then takes an image, as its description says."""
    catalogue = Catalogue.model_validate({"models": MODELS})
    plan = compiled("classify")
    assert plan.node("classify").bindings["pixels"].adapt is not None
    assert "image" == input_ports(plan, catalogue)["pixels"].kind


def test_plans_without_files_are_as_they_were() -> None:
    """Nothing is stored where nothing is done."""
    assert "adapt" not in compiled("camera", "embed").model_dump_json()


@pytest.mark.parametrize(
    ("names", "inputs", "says"),
    [
        (("recorder", "classify"), {}, "nothing upstream gives its input 'pixels'"),
        (("recorder", "classify"), {"pixels": "recorder.sound"},
         r"a tensor FP32 \[-1, 3, 224, 224\], and that is audio"),
        (("camera", "listen"), {"samples": "camera.note"}, "and that is text"),
        (("double", "narrow"), {}, r"FP64 \[-1, 3\], and that is a tensor FP64 \[-1, 2\]"),
        (("embed", "double"), {"x": "embed.embedding"}, r"FP64 \[-1, 2\], and that is a tensor"),
        (("embed", "rank"), {}, r"holds scores/classes .* and that holds vector/embedding"),
        (("camera", "embed"), {"text": "camera.photo"}, "it is text, and that is image"),
    ],
)  # fmt: skip
def test_edges_that_cannot_work(names: tuple[str, ...], inputs: Any, says: str) -> None:
    """Are refused when the workflow is deployed, by node and input."""
    with pytest.raises(InvalidArgument, match=says) as caught:
        compiled(*names, **inputs)
    assert str(caught.value.field).startswith("nodes[1].inputs.")


@pytest.mark.parametrize(
    ("names", "inputs"),
    [
        (("embed", "near"), {}),
        (("any", "classify"), {"pixels": "any.document"}),
        (("classify", "any"), {"document": "classify.scores"}),
        (("classify", "rank"), {}),
    ],
)
def test_edges_that_can(names: tuple[str, ...], inputs: Any) -> None:
    """The same content, narrower shapes, and JSON, which shows when it runs."""
    compiled(*names, **inputs)


TOKENS = [tensor("input_ids", "INT64", -1, -1), tensor("attention_mask", "INT64", -1, -1)]
VOCABULARY = {"path": "vocab.txt", "sha256": "a" * 64, "tokens_max": 128}


def test_a_text_is_made_into_tokens_of_the_models_own() -> None:
    """Each input of them is bound to the text, with the vocabulary by its digest."""
    logits = [tensor("logits", "FP32", -1, 2)]
    model = entry(TOKENS, logits, "sequence-classification/1", vocabulary=VOCABULARY)
    catalogue = Catalogue.model_validate({"models": {**MODELS, "judge": model}})
    nodes = [
        {"id": name, "type": "model", "params": {"model": name}} for name in ("camera", "judge")
    ]
    document = {"nodes": nodes, "edges": [{"source": "camera", "target": "judge"}]}
    bindings = compile_plan(parse_definition(document), catalogue).node("judge").bindings
    for name, part in (("input_ids", "ids"), ("attention_mask", "mask")):
        assert ("camera", "note") == (bindings[name].node, bindings[name].output)
        adaptation = bindings[name].adapt
        assert adaptation is not None
        assert (part, "a" * 64, 128, True) == tuple(
            adaptation.params[key] for key in ("part", "sha256", "tokens_max", "lower_case")
        )
    again = Catalogue.model_validate_json(catalogue.model_dump_json())
    assert catalogue == again


def test_tokens_without_a_vocabulary_are_made_of_nothing() -> None:
    """The text has to become tokens somewhere else."""
    model = entry(TOKENS, [tensor("logits", "FP32", -1, 2)], "sequence-classification/1")
    catalogue = Catalogue.model_validate({"models": {**MODELS, "judge": model}})
    nodes = [
        {"id": name, "type": "model", "params": {"model": name}} for name in ("camera", "judge")
    ]
    document = {"nodes": nodes, "edges": [{"source": "camera", "target": "judge"}]}
    with pytest.raises(InvalidArgument, match="nothing upstream gives its input 'input_ids'"):
        compile_plan(parse_definition(document), catalogue)


def test_a_vocabulary_needs_tokens() -> None:
    """A model without any has no use for it."""
    with pytest.raises(ValueError, match="no input holds tokens"):
        Catalogue.model_validate({"models": {"a": {**CLASSIFY, "vocabulary": VOCABULARY}}})


def test_alternatives_want_the_same_of_a_file() -> None:
    """Another size is another input: the plan has one adapter for both."""
    other = entry([tensor("pixels", "FP32", -1, 3, 384, 384)], [SCORES], "image-classification/1")
    catalogue = Catalogue.model_validate({"models": {**MODELS, "large": other}})
    node = {
        "id": "a", "type": "model", "params": {"model": "classify"},
        "alternatives": [{"model": "large"}],
    }  # fmt: skip
    with pytest.raises(InvalidArgument, match="'large' has other inputs or outputs"):
        compile_plan(parse_definition({"nodes": [node], "edges": []}), catalogue)


def test_the_library_is_sound() -> None:
    """Every role's content exists; names have a version; what can be adapted says of what."""
    for name, signature in SIGNATURES.items():
        stem, _, version = name.partition("/")
        assert stem
        assert version.isdigit()
        for role in (*signature.inputs.values(), *signature.outputs.values()):
            assert (role.kind == "tensor") == bool(role.content)
            assert not role.content or role.content in CONTENTS
    for content in CONTENTS.values():
        assert bool(content.adapter) == bool(content.source)
