"""Reads the text in an image with RapidOCR (PP-OCR models, which come inside the wheel)."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from schemas.errors import EngineFailed, ModelUnavailable
from schemas.values import Value
from services.workers.engine import Engine, Request
from services.workers.engines import fields, image_io


if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SIDE_MAX = 2_000
DETECTOR_SIDE_MAX = 1_280
MIN_SCORE = 0.5


class RapidocrEngine(Engine):
    """Outputs `text` and `lines`, a list of {text, score, box}, of input `image`.

    A box is four [x, y] corners in pixels of the upright image, clockwise from the top left.

    Params: `min_score` 0 to 1: lines read with less confidence are left out.
    """

    packages: ClassVar[tuple[str, ...]] = ("rapidocr",)
    reader: Any = None

    @override
    def missing(self) -> str | None:
        return fields.missing_package("rapidocr", "onnxruntime", "PIL")

    @override
    def load(self) -> None:
        try:
            from rapidocr import RapidOCR
        except ImportError as error:
            raise ModelUnavailable("the Python package rapidocr is not installed") from error
        self.reader = RapidOCR(
            params={
                "Global.log_level": "critical",
                "Global.use_cls": False,
                "Det.limit_type": "max",
                "Det.limit_side_len": DETECTOR_SIDE_MAX,
                "EngineConfig.onnxruntime.intra_op_num_threads": 1,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            }
        )

    @override
    def infer(self, batch: Sequence[Request]) -> list[Mapping[str, Value]]:
        return [self._read(request) for request in batch]

    @override
    def close(self) -> None:
        self.reader = None

    def _read(self, request: Request) -> Mapping[str, Value]:
        min_score = fields.number(request, "min_score", default=MIN_SCORE, low=0.0, high=1.0)
        pixels, scale = load_image(
            fields.data(request, "image", bytes_max=image_io.IMAGE_BYTES_MAX)
        )
        try:
            result = self.reader(pixels, use_cls=False, text_score=min_score)
        except Exception as error:
            raise EngineFailed("the reader could not process this image") from error
        if result.txts is None:
            return {"text": "", "lines": []}
        lines = [
            {
                "text": text,
                "score": round(float(score), 4),
                "box": [[round(float(x) / scale, 1), round(float(y) / scale, 1)] for x, y in box],
            }
            for text, score, box in zip(result.txts, result.scores, result.boxes, strict=True)
        ]
        return {"text": "\n".join(result.txts), "lines": lines}


def load_image(data: bytes) -> "tuple[NDArray[np.uint8], float]":
    """Decode an image, upright, without transparency, its long side at most 2000 pixels.

    Returns:
        uint8 [height, width, channel=3] in BGR order, and the factor it was scaled by.

    Raises:
        InvalidArgument: Unknown format, damaged, or too many pixels; names `inputs.image`.
    """
    import numpy as np

    upright = image_io.open_image(data)
    scale = min(1.0, SIDE_MAX / max(upright.size))
    if scale < 1.0:
        upright = upright.resize(
            (max(1, int(upright.width * scale)), max(1, int(upright.height * scale)))
        )
    return np.ascontiguousarray(np.asarray(image_io.opaque(upright))[:, :, ::-1]), scale
