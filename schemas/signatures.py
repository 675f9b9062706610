"""The library of signatures: what models of the common families take and give, by name and version.

A catalogue entry that says `signature: image-classification/1` is held to it, and its tensors get a
*content*: what their numbers mean beyond datatype and shape. Contents are compared where outputs
meet inputs, and some can be made of a file by an adapter. A version never changes: another meaning
is another version.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


TOKENIZER_ADAPTER = "text-to-tokens/2"
"""In the place of a content's adapter where the vocabulary is a `tokenizer.json`."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Of the channels R, G, B. Source: the usual figures of ILSVRC 2012, as torchvision has them."""
CHANNELS_FIRST = 4
"""Dimensions of [row, channel, height, width]."""


class Shaped(Protocol):
    """A port of the catalogue."""

    @property
    def name(self) -> str: ...  # noqa: D102 - as the catalogue says
    @property
    def kind(self) -> str: ...  # noqa: D102
    @property
    def datatype(self) -> str: ...  # noqa: D102
    @property
    def shape(self) -> Sequence[int]: ...  # noqa: D102


@dataclass(frozen=True)
class Content:
    """What the numbers of a tensor mean.

    Args:
        says: In words.
        datatype: Of the Open Inference Protocol.
        shape: Of a request: -1 is any size.
        source: Kind of file that `adapter` makes it of; empty for none.
        adapter: Name and version.
        params: Of the adapter.
        needs_vocabulary: Whether the adapter needs the model's own.
    """

    says: str
    datatype: str
    shape: tuple[int, ...]
    source: str = ""
    adapter: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)
    needs_vocabulary: bool = False


def _tokens(says: str, part: str) -> Content:
    return Content(
        says, "INT64", (-1, -1), "text", "text-to-tokens/1", {"part": part}, needs_vocabulary=True
    )


CONTENTS: Mapping[str, Content] = {
    "pixels/imagenet": Content(
        "RGB in [0, 1], less the mean of ImageNet and divided by its deviation, channels first",
        "FP32",
        (-1, 3, -1, -1),
        "image",
        "image-to-pixels/1",
        {"mean": IMAGENET_MEAN, "std": IMAGENET_STD},
    ),
    "pixels/unit": Content(
        "RGB in [0, 1], channels first",
        "FP32",
        (-1, 3, -1, -1),
        "image",
        "image-to-pixels/1",
        {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)},
    ),
    "samples/16khz": Content(
        "one channel of sound at 16 kHz in [-1, 1]",
        "FP32",
        (-1, -1),
        "audio",
        "audio-to-samples/1",
        {"rate_hz": 16_000},
    ),
    "tokens/ids": _tokens("ids of the model's own tokens", "ids"),
    "tokens/mask": _tokens("1 for a token, 0 for padding", "mask"),
    "tokens/types": _tokens("which of two texts a token is of: 0, the first", "types"),
    "scores/classes": Content("a number for each class", "FP32", (-1, -1)),
    "scores/tokens": Content("a number for each class, of each token", "FP32", (-1, -1, -1)),
    "boxes/xyxy": Content("left, top, right, bottom in pixels of the input", "FP32", (-1, -1, 4)),
    "vector/embedding": Content("a vector for each row", "FP32", (-1, -1)),
    "scores/frames": Content("a number for each symbol, of each frame", "FP32", (-1, -1, -1)),
}


@dataclass(frozen=True)
class Role:
    """One input or output of a signature."""

    kind: str
    content: str = ""
    """Of a tensor; it says datatype and shape."""
    optional: bool = False


@dataclass(frozen=True)
class Signature:
    """What models of a family take and give; they may take more, optionally, and give more."""

    says: str
    inputs: Mapping[str, Role]
    outputs: Mapping[str, Role]


_TEXT, _AUDIO, _IMAGE = Role("text"), Role("audio"), Role("image")
_TOKENS = {
    "input_ids": Role("tensor", "tokens/ids"),
    "attention_mask": Role("tensor", "tokens/mask", optional=True),
    "token_type_ids": Role("tensor", "tokens/types", optional=True),
}

SIGNATURES: Mapping[str, Signature] = {
    "image-classification/1": Signature(
        "What is in an image, as ImageNet's networks want it",
        {"pixels": Role("tensor", "pixels/imagenet")},
        {"scores": Role("tensor", "scores/classes")},
    ),
    "image-classification-unit/1": Signature(
        "What is in an image that is not normalised",
        {"pixels": Role("tensor", "pixels/unit")},
        {"scores": Role("tensor", "scores/classes")},
    ),
    "object-detection/1": Signature(
        "Where things are in an image",
        {"pixels": Role("tensor", "pixels/unit")},
        {"boxes": Role("tensor", "boxes/xyxy"), "scores": Role("tensor", "scores/tokens")},
    ),
    "acoustic-model/1": Signature(
        "Symbols in sound, before they are decoded",
        {"samples": Role("tensor", "samples/16khz")},
        {"frames": Role("tensor", "scores/frames")},
    ),
    "speech-recognition/1": Signature("Text in speech", {"audio": _AUDIO}, {"text": _TEXT}),
    "text-to-speech/1": Signature("Speech of a text", {"text": _TEXT}, {"audio": _AUDIO}),
    "ocr/1": Signature("Text in an image", {"image": _IMAGE}, {"text": _TEXT}),
    "text-embedding/1": Signature(
        "Vectors of texts", {"text": _TEXT}, {"embedding": Role("tensor", "vector/embedding")}
    ),
    "token-embedding/1": Signature(
        "Vectors of texts, of their tokens",
        _TOKENS,
        {"embedding": Role("tensor", "vector/embedding")},
    ),
    "sequence-classification/1": Signature(
        "A class of a text, of its tokens", _TOKENS, {"logits": Role("tensor", "scores/classes")}
    ),
    "token-classification/1": Signature(
        "A class of each token", _TOKENS, {"logits": Role("tensor", "scores/tokens")}
    ),
    "chat/1": Signature("A text that answers a text", {"text": _TEXT}, {"text": _TEXT}),
}


def contents_of(
    name: str, inputs: Sequence[Shaped], outputs: Sequence[Shaped]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the contents of a model's inputs and outputs, by port, as its signature has them.

    Raises:
        ValueError: No such signature, or the ports are not its; names the port.
    """
    signature = SIGNATURES.get(name)
    if signature is None:
        raise ValueError(f"no signature '{name}'; known: {', '.join(SIGNATURES)}")
    found = []
    for side, ports, roles in (
        ("input", inputs, signature.inputs),
        ("output", outputs, signature.outputs),
    ):
        known = {port.name: port for port in ports}
        for role_name, role in roles.items():
            port = known.get(role_name)
            if port is not None:
                _check(port, role, f"{name} has the {side} '{role_name}'")
            elif not role.optional:
                raise ValueError(f"{name} has the {side} '{role_name}', which is not declared")
        found.append({key: role.content for key, role in roles.items() if key in known})
    more = [port.name for port in inputs if port.name not in signature.inputs and _needed(port)]
    if more:
        raise ValueError(f"{name} has no input '{more[0]}'; declare it with required: false")
    return found[0], found[1]


def _needed(port: Shaped) -> bool:
    return bool(getattr(port, "required", True))


def _check(port: Shaped, role: Role, what: str) -> None:
    if port.kind != role.kind:
        raise ValueError(f"{what} of kind {role.kind}, not {port.kind}")
    if role.content:
        check_content(port, role.content, what)


def check_content(port: Shaped, name: str, what: str = "") -> None:
    """Refuse a port whose tensor cannot have a content.

    Raises:
        ValueError: No such content, or another datatype or shape.
    """
    content = CONTENTS.get(name)
    if content is None:
        raise ValueError(f"no content '{name}'; known: {', '.join(CONTENTS)}")
    what = what or f"'{port.name}' holds {name}"
    if port.kind != "tensor" or port.datatype != content.datatype:
        raise ValueError(f"{what}, a tensor of {content.datatype}, not {port.datatype}")
    if not may_meet(port.shape, content.shape):
        raise ValueError(f"{what} of the shape {list(content.shape)}, not {list(port.shape)}")


def may_meet(one: Sequence[int], other: Sequence[int]) -> bool:
    """Tell whether a tensor may have both shapes; -1 is any size."""
    return len(one) == len(other) and all(
        a == b or a < 0 or b < 0 for a, b in zip(one, other, strict=True)
    )


def adapter_params(name: str, shape: Sequence[int]) -> dict[str, Any]:
    """Return the params with which an adapter makes a content for a port of this shape."""
    content = CONTENTS[name]
    params: dict[str, Any] = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in content.params.items()
    }
    if content.source == "image" and len(shape) == CHANNELS_FIRST:
        params |= {"height": shape[2], "width": shape[3]}
    return params
