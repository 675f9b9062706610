"""Reading images."""

import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from schemas.errors import InvalidArgument
from schemas.values import Binary, Value


Infer = Callable[..., Mapping[str, Value]]


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP"])
def test_every_format_is_read(rapidocr: Infer, picture: Callable[..., Binary], form: str) -> None:
    """The same words come out of each format, with score and box."""
    outputs = rapidocr({"image": picture("Hello clawdbot", form=form)})
    (line,) = outputs["lines"]
    assert "Hello clawdbot" == outputs["text"] == line["text"]
    assert line["score"] > 0.8
    assert 4 == len(line["box"])


def test_exif_rotation(rapidocr: Infer, picture: Callable[..., Binary]) -> None:
    """A photo taken sideways is turned upright by its own note."""
    image_module = pytest.importorskip("PIL.Image")
    exif = image_module.Exif()
    exif[0x0112] = 6
    sideways = picture("Hello clawdbot", form="JPEG", turn=90, exif=exif)
    assert "Hello clawdbot" == rapidocr({"image": sideways})["text"]


def test_an_empty_image_has_no_text(rapidocr: Infer, picture: Callable[..., Binary]) -> None:
    """Nothing written, nothing read."""
    assert {"text": "", "lines": []} == rapidocr({"image": picture("")})


@pytest.mark.parametrize(
    ("expected", "name"),
    [
        ("3 MovieShots Dataset", "en.jpg"),
        ("正品促销", "ch_en_num.jpg"),
        ("我是中国人", "img_exif_orientation.jpg"),
        ("我是中国人", "white_font_color_transparent.png"),
        ("中国网络空间安全", "short.png"),
    ],
)
def test_real_images(rapidocr: Infer, data_dir: Path, expected: str, name: str) -> None:
    """Photographs, a rotated one and a transparent one read right."""
    image = Binary(media_type="image/png", data=(data_dir / "images" / name).read_bytes())
    assert expected == rapidocr({"image": image})["lines"][0]["text"]


def bomb() -> bytes:
    """Return a small PNG that claims 100 000 x 100 000 pixels."""
    body = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + body
    data = zlib.compress(bytes(1000))
    image = b"IDAT" + data
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            struct.pack(">I", len(body)) + chunk + struct.pack(">I", zlib.crc32(chunk)),
            struct.pack(">I", len(data)) + image + struct.pack(">I", zlib.crc32(image)),
        ]
    )


@pytest.mark.parametrize(
    ("expected", "data"),
    [
        ("is empty", b""),
        ("not an image we can read", b"GIF89a" + bytes(100)),
        ("not an image we can read", b"no image at all"),
        ("100000x100000 pixels|damaged", bomb()),
        ("at most 20971520", bytes(20 * 1024 * 1024 + 1)),
    ],
)
def test_bad_images_are_refused(rapidocr: Infer, expected: str, data: bytes) -> None:
    """The error names the input, before any pixel is decoded."""
    with pytest.raises(InvalidArgument, match=expected) as caught:
        rapidocr({"image": Binary(media_type="image/png", data=data)})
    assert "inputs.image" == caught.value.field


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_cut_images_are_refused(rapidocr: Infer, picture: Callable[..., Binary], form: str) -> None:
    """Half a file is damaged, not half a text."""
    whole = picture("Hello clawdbot", form=form).data
    with pytest.raises(InvalidArgument):
        rapidocr({"image": whole[: len(whole) // 2]})
