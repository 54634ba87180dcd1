import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from pipeline.model.pixels import decode, random_square_crop

RAMP = np.broadcast_to(np.arange(40, dtype=np.uint8)[None, :, None], (30, 40, 3))
"""30 high, 40 wide; a pixel's value is its column."""


def test_decode_gives_rgb() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 8), (250, 10, 10)).save(buffer, "JPEG", quality=95)
    pixels = decode(buffer.getvalue())
    assert pixels.shape == (8, 16, 3)
    assert pixels[..., 0].min() > 230
    assert pixels[..., 2].max() < 30


@pytest.mark.parametrize("data", [b"", b"no image"])
def test_undecodable(data: bytes) -> None:
    with pytest.raises(ValueError, match="cannot be decoded"):
        decode(data)


@pytest.mark.parametrize(
    ("at", "first_column"), [((0.0, 0.0), 0), ((0.0, 0.999999), 16), ((0.5, 0.5), 8)]
)  # a crop of 24 in a width of 40 has 17 places
def test_crop_lies_where_it_is_told(at: tuple[float, float], first_column: int) -> None:
    crop = random_square_crop(RAMP, 24, 0.8, at)
    assert crop.shape == (3, 24, 24)
    assert crop[0, 0].tolist() == list(range(first_column, first_column + 24))


@pytest.mark.parametrize("image_size", [8, 64])
def test_crop_is_resized(image_size: int) -> None:
    crop = random_square_crop(RAMP, image_size, 1.0, (0.0, 0.0))
    assert crop.shape == (3, image_size, image_size)
    assert abs(float(crop.mean()) - 14.5) < 1


def test_readers_need_no_torch() -> None:
    """What reading tasks import starts in a fraction of torch's seconds."""
    program = "import sys, pipeline.train.batches; sys.exit('torch' in sys.modules or 'timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
