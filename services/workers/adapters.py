"""Makes the tensors that a model wants of files and texts: before the engine, by the plan.

An adapter is a pure function with a name and a version; a version computes the same for ever,
because forks of old runs ask for it. Whatever is no file, or no text, passes as it is.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from schemas.errors import InvalidArgument, ModelUnavailable
from schemas.plan import Adaptation
from schemas.signatures import TOKENIZER_ADAPTER
from schemas.values import Binary, Tensor, Value
from services.workers import wordpiece
from services.workers.engines import audio_io, fields, image_io, tokenizer


CHANNELS = 3
ADAPTED_SIDE_MAX = 4096

Adapter = Callable[[Any, Mapping[str, Any], str, Path], Tensor]
"""Takes a file's bytes or a text, params, the input's field, and the folder of the model."""


def adapted(
    inputs: Mapping[str, Value], wanted: Mapping[str, Adaptation], folder: Path
) -> dict[str, Value]:
    """Return inputs with the files and texts among them made into what the plan says.

    Args:
        inputs: By name.
        wanted: What is done, by input.
        folder: Where the model's source is.

    Raises:
        InvalidArgument: A file cannot be read; names `inputs.<name>`.
        ModelUnavailable: This worker is too old to know an adapter, or lacks a package or a file.
    """
    found = dict(inputs)
    for name, adaptation in wanted.items():
        value = found.get(name)
        material = value.data if isinstance(value, Binary) else value
        if not isinstance(material, bytes | str):
            continue
        kind, adapter = ADAPTERS.get(adaptation.adapter, (None, None))
        if kind is None or adapter is None:
            raise ModelUnavailable(f"this worker does not know the adapter {adaptation.adapter}")
        if not isinstance(material, kind):
            continue
        absent = fields.missing_package("numpy", "PIL")
        if absent is not None:
            raise ModelUnavailable(absent)
        found[name] = adapter(material, adaptation.params, f"inputs.{name}", folder)
    return found


def _image_to_pixels(data: bytes, params: Mapping[str, Any], field: str, _: Path) -> Tensor:
    """Return FP32 [1, channel=3, height, width]: RGB, (value / 255 - mean) / std.

    The image is scaled until it covers height and width, bilinear with antialiasing, and its middle
    is taken; a height or width of -1 leaves it as it is.
    """
    import numpy as np
    from PIL import Image

    _check_bytes(data, image_io.IMAGE_BYTES_MAX, field)
    image = image_io.opaque(image_io.open_image(data, field))
    height, width = int(params.get("height", -1)), int(params.get("width", -1))
    if height > 0 and width > 0:
        scale = max(height / image.height, width / image.width)
        size = max(width, round(image.width * scale)), max(height, round(image.height * scale))
        image = image.resize(size, Image.Resampling.BILINEAR)
        left, top = (size[0] - width) // 2, (size[1] - height) // 2
        image = image.crop((left, top, left + width, top + height))
    elif max(image.size) > ADAPTED_SIDE_MAX:
        raise InvalidArgument(
            f"the image has more than {ADAPTED_SIDE_MAX} pixels a side", field=field
        )
    mean = np.array(params.get("mean", [0.0] * CHANNELS), np.float32)
    std = np.array(params.get("std", [1.0] * CHANNELS), np.float32)
    pixels = (np.asarray(image, np.float32) / np.float32(255) - mean) / std
    first = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]).astype("<f4")
    return Tensor(datatype="FP32", shape=first.shape, data=first.tobytes())


def _audio_to_samples(data: bytes, params: Mapping[str, Any], field: str, _: Path) -> Tensor:
    """Return FP32 [1, sample] in [-1, 1], mono, at 16 kHz."""
    if params.get("rate_hz") != audio_io.RATE_HZ:
        raise ModelUnavailable(f"audio-to-samples/1 gives {audio_io.RATE_HZ} samples a second")
    _check_bytes(data, audio_io.AUDIO_BYTES_MAX, field)
    try:
        samples = audio_io.decode(data).samples
    except InvalidArgument as error:
        raise InvalidArgument(error.message, field=field) from error
    return Tensor(datatype="FP32", shape=(1, len(samples)), data=samples.astype("<f4").tobytes())


def _text_to_tokens(text: str, params: Mapping[str, Any], field: str, folder: Path) -> Tensor:
    """Return INT64 [1, token]: the ids of the text's tokens, their mask, or zeros."""
    _check_chars(text, field)
    known = wordpiece.vocabulary(folder, str(params["path"]), str(params["sha256"]))
    ids = wordpiece.tokens(
        text,
        known,
        lower_case=bool(params["lower_case"]),
        tokens_max=int(params["tokens_max"]),
    )
    return _tokens({"ids": ids, "mask": [1] * len(ids), "types": [0] * len(ids)}[params["part"]])


def _text_to_tokens_whole(text: str, params: Mapping[str, Any], field: str, folder: Path) -> Tensor:
    """Return INT64 [1, token] as the model's `tokenizer.json` has it."""
    _check_chars(text, field)
    path, sha256 = str(params["path"]), str(params["sha256"])
    known = tokenizer.load(folder, path, sha256, int(params["tokens_max"]))
    found = known.encode(text, field)
    return _tokens({"ids": found.ids, "mask": found.mask, "types": found.types}[params["part"]])


def _tokens(values: Sequence[int]) -> Tensor:
    import numpy as np

    data = np.array(values, "<i8").tobytes()
    return Tensor(datatype="INT64", shape=(1, len(values)), data=data)


def _check_chars(text: str, field: str) -> None:
    if len(text) > fields.TEXT_CHARS_MAX:
        raise InvalidArgument(
            f"the text has {len(text)} characters; at most {fields.TEXT_CHARS_MAX} are allowed",
            field=field,
        )


def _check_bytes(data: bytes, bytes_max: int, field: str) -> None:
    if not 0 < len(data) <= bytes_max:
        raise InvalidArgument(
            f"the file has {len(data)} bytes; 1 to {bytes_max} are allowed", field=field
        )


ADAPTERS: Mapping[str, tuple[type[bytes | str], Adapter]] = {
    "audio-to-samples/1": (bytes, _audio_to_samples),
    "image-to-pixels/1": (bytes, _image_to_pixels),
    "text-to-tokens/1": (str, _text_to_tokens),
    TOKENIZER_ADAPTER: (str, _text_to_tokens_whole),
}
"""What each takes, and what it computes."""
