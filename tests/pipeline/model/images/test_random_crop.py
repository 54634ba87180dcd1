import io
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.model.images.random_crop import REDUCED_SHRINK, Pixels, decode, random_square_crop
from pipeline.pictures import decode as pictures
from pipeline.pictures.essential import FORMATS
from tests.pipeline.data.rows import encode, photo_like
from tests.pipeline.pictures.files import ALPHA_MODES, SHOWN, exif_of, with_alpha

RAMP = np.broadcast_to(np.arange(40, dtype=np.uint8)[None, :, None], (30, 40, 3))
"""An image 30 high and 40 wide, in which the value of a pixel is its column."""


def test_decode_gives_rgb() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 8), (250, 10, 10)).save(buffer, "JPEG", quality=95)
    pixels = decode(buffer.getvalue())
    assert pixels.shape == (8, 16, 3)
    assert pixels[..., 0].min() > 230
    assert pixels[..., 2].max() < 30


@pytest.mark.parametrize("data", [b"", b"no image"])
def test_undecodable_data_raises(data: bytes) -> None:
    with pytest.raises(ValueError, match="cannot be decoded"):
        decode(data)


def jpeg(pixels: Pixels, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95, **options)
    return buffer.getvalue()


def smooth(height: int, width: int) -> Pixels:
    """An image with a different gradient in each colour channel."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([255 * rows / height, 255 * columns / width, 255 * (rows + columns) / (height + width)], -1).astype(
        np.uint8
    )


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"exif": b"Exif\0\0" + bytes(300)}])
@pytest.mark.parametrize(
    ("least_side", "shape"),
    [
        (61, (120, 160)),
        (60, (60, 80)),
        (31, (60, 80)),
        (30, (30, 40)),
        (15, (15, 20)),
        (1, (15, 20)),
        (None, (120, 160)),
    ],
)
def test_a_jpeg_is_decoded_at_the_smallest_sufficient_size(
    least_side: int | None, shape: tuple[int, int], options: dict[str, object]
) -> None:
    pixels = decode(jpeg(smooth(120, 160), **options), least_side)
    assert pixels.shape == (*shape, 3)
    wanted = np.asarray(Image.fromarray(smooth(120, 160)).resize(shape[::-1], Image.Resampling.BOX), np.int64)
    assert abs(pixels - wanted).max() <= 6, "another picture, or another order of colours"


def test_other_formats_are_decoded_in_full() -> None:
    buffer = io.BytesIO()
    Image.fromarray(smooth(64, 64)).save(buffer, "PNG")
    assert decode(buffer.getvalue(), 1).shape == (64, 64, 3)
    assert decode(jpeg(smooth(64, 64))[:2] + b"\xff\xff\xff" + jpeg(smooth(64, 64))[2:], 1).shape[0] in (8, 64)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("least_side", [None, 61, 30])
def test_jpegs_are_upright_at_every_size(least_side: int | None, orientation: int) -> None:
    data = encode(Image.fromarray(smooth(120, 160)), "JPEG", quality=95, exif=exif_of(orientation))
    pixels = decode(data, least_side)
    height, width, _ = pixels.shape
    expected = pictures.decode(data).resize((width, height), Image.Resampling.BOX)
    assert min(height, width) == (30 if least_side == 30 else 120)
    assert abs(pixels - np.asarray(expected, np.int64)).max() <= 6


@pytest.mark.parametrize("name", [*SHOWN, *ALPHA_MODES])
def test_whatever_a_page_shows_is_decoded(name: str) -> None:
    data = SHOWN[name]() if name in SHOWN else with_alpha(name, 6)
    assert np.array_equal(decode(data), np.asarray(pictures.decode(data).convert("RGB")))


@pytest.mark.parametrize("kind", FORMATS)
def test_the_pixels_are_those_of_evaluation(kind: str) -> None:
    for mode in ("RGB", "L", "P", "1", "RGBA"):
        picture = photo_like(3, 90, 70).convert(mode)
        data = encode(picture if kind not in {"JPEG", "AVIF"} else picture.convert("RGB"), kind)
        assert np.array_equal(decode(data), np.asarray(pictures.decode(data).convert("RGB"))), mode


def test_a_jpeg_that_opencv_cannot_decode_is_decoded_by_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(Image.fromarray(smooth(12, 16)), "JPEG", exif=exif_of(6))
    expected = decode(data)
    monkeypatch.setattr(cv2, "imdecode", lambda *_: None)
    assert np.array_equal(decode(data), expected)


@pytest.mark.realdata
def test_crops_are_close_to_pillows(clip_data: Path) -> None:
    """Compare with Pillow's kernel on the same square, with photographs decoded in full and at half size."""
    images = pq.read_table(clip_data / "photos.parquet", columns=["image"])["image"].slice(0, 30).to_pylist()
    for image_size, least_decibels in ((190, 42), (112, 40), (56, 36)):
        decibels = []
        for image in images:
            square = Image.fromarray(decode(image)[14:210, 14:210])
            wanted = np.asarray(square.resize((image_size, image_size), Image.Resampling.BICUBIC), np.float64)
            pixels = decode(image, REDUCED_SHRINK * image_size / 0.875)
            crop = random_square_crop(pixels, image_size, 0.875, (0.5, 0.5)).transpose(1, 2, 0)
            decibels.append(10 * np.log10(255**2 / ((crop - wanted) ** 2).mean()))
        assert np.median(decibels) > least_decibels, image_size


@pytest.mark.parametrize(
    ("at", "first_column"), [((0.0, 0.0), 0), ((0.0, 0.999999), 16), ((0.5, 0.5), 8)]
)  # a crop of 24 in a width of 40 has 17 possible positions
def test_the_crop_lies_at_the_given_position(at: tuple[float, float], first_column: int) -> None:
    crop = random_square_crop(RAMP, 24, 0.8, at)
    assert crop.shape == (3, 24, 24)
    assert crop[0, 0].tolist() == list(range(first_column, first_column + 24))


@pytest.mark.parametrize("image_size", [8, 64])
def test_the_crop_is_resized(image_size: int) -> None:
    crop = random_square_crop(RAMP, image_size, 1.0, (0.0, 0.0))
    assert crop.shape == (3, image_size, image_size)
    assert abs(float(crop.mean()) - 14.5) < 1


def test_reading_does_not_import_torch() -> None:
    """Importing torch takes seconds, which reading tasks must not spend."""
    program = "import sys, pipeline.train.reading.batches; sys.exit('torch' in sys.modules or 'timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
