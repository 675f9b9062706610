"""Reads images without ever trusting one: pixels are counted before any is decoded."""

import io
from typing import TYPE_CHECKING

from schemas.errors import InvalidArgument


if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_BYTES_MAX = 20 * 1024 * 1024
PIXELS_MAX = 40_000_000
SIDE_MIN = 8

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
_DARK = 128


def open_image(data: bytes, field: str = "inputs.image") -> "Image":
    """Decode an image, upright.

    Raises:
        InvalidArgument: Unknown format, damaged, or too many pixels; names `field`.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            _check_size(image, field)
            image.load()
            upright = ImageOps.exif_transpose(image)
    except UnidentifiedImageError as error:
        raise InvalidArgument(
            "not an image we can read; send PNG, JPEG, WebP or BMP", field=field
        ) from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InvalidArgument("the image file is damaged or incomplete", field=field) from error
    return upright


def opaque(image: "Image") -> "Image":
    """Lay a transparent image on whichever of black and white its content stands out from."""
    import numpy as np
    from PIL import Image

    if "A" not in image.getbands() and "transparency" not in image.info:
        return image.convert("RGB")
    layered = image.convert("RGBA")
    pixels = np.asarray(layered)
    visible = pixels[pixels[:, :, 3] > 0][:, :3]
    light = visible.size > 0 and visible.mean() > _DARK
    ground = Image.new("RGBA", layered.size, "black" if light else "white")
    return Image.alpha_composite(ground, layered).convert("RGB")


def _check_size(image: "Image", field: str) -> None:
    """Refuse a decompression bomb by its header."""
    width, height = image.size
    if width * height > PIXELS_MAX:
        raise InvalidArgument(
            f"the image has {width}x{height} pixels; at most {PIXELS_MAX} are allowed", field=field
        )
    if min(width, height) < SIDE_MIN:
        raise InvalidArgument(f"the image is smaller than {SIDE_MIN} pixels", field=field)
