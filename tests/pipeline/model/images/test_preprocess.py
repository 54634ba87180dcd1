import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.transform import image_transform
from PIL import Image
from torch import Tensor

from pipeline.model.images.preprocess import preprocess_for
from pipeline.model.towers.image_tower import normalise

SIXTEEN_BITS = ("I;16", "I;16B", "I")


def reference(image_size: int) -> Callable[[Image.Image], Tensor]:
    """open_clip's transform for inference."""
    return image_transform(image_size, is_train=False)  # type: ignore[no-any-return]


def noise(mode: str, width: int, height: int) -> Image.Image:
    """A picture of random pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 4), dtype=np.uint8)
    picture = Image.fromarray(pixels, "RGBA") if mode in {"RGBA", "LA", "PA"} else Image.fromarray(pixels[..., :3])
    return picture.convert(mode)


def assert_same(image: Image.Image, image_size: int) -> None:
    ours, theirs = preprocess_for(image_size)(image), reference(image_size)(image)
    assert ours.dtype == torch.float32
    assert ours.is_contiguous()
    assert torch.equal(ours, theirs)


@pytest.mark.realdata
def test_photographs(clip_data: Path) -> None:
    """Compare 200 photographs bit for bit, at a model's usual resolution and a larger one."""
    images = pq.read_table(clip_data / "photos.parquet", columns=["image"]).slice(0, 200)["image"].to_pylist()
    for index, data in enumerate(images):
        image = Image.open(io.BytesIO(data))
        # Each image whole, and cropped to vary its aspect ratio
        cut = image.crop((0, 0, image.width - 3 * (index % 30), image.height - 5 * (index % 17)))
        assert_same(image, 224)
        assert_same(cut, 336 if index % 10 == 0 else 224)


@settings(deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([1, 7, 16, 32]))
def test_any_size(width: int, height: int, image_size: int) -> None:
    assert_same(noise("RGB", width, height), image_size)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV", "LAB"])
def test_every_mode_with_eight_bits(mode: str) -> None:
    for size in ((40, 31), (32, 32), (9, 20)):
        assert_same(noise(mode, *size), 32)


def test_a_palette_with_transparency() -> None:
    image = noise("P", 40, 31)
    image.info["transparency"] = 3
    assert_same(image, 32)


@pytest.mark.parametrize("mode", SIXTEEN_BITS)
def test_the_upper_eight_of_sixteen_bits_are_used(mode: str) -> None:
    """open_clip's transform turns every pixel above 255 of 65,535 white."""
    grey = np.arange(40 * 31, dtype=np.uint16).reshape(31, 40) * 50
    kinds = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}
    image = Image.frombytes(mode, (40, 31), grey.astype(kinds[mode]).tobytes())
    expected = reference(32)(Image.fromarray((grey >> 8).astype(np.uint8)))
    assert torch.equal(preprocess_for(32)(image), expected)
    assert (reference(32)(image) == normalise(torch.full((3, 1, 1), 255, dtype=torch.uint8))).float().mean() > 0.95


def test_a_file_with_sixteen_bits() -> None:
    file = io.BytesIO()
    Image.fromarray(np.full((20, 20), 0x8000, np.uint16)).save(file, "PNG")
    expected = preprocess_for(16)(Image.new("L", (20, 20), 0x80))
    assert torch.equal(preprocess_for(16)(Image.open(file)), expected)


def test_an_image_of_floats_raises() -> None:
    with pytest.raises(ValueError, match=r"mode F has no known range.*convert it to 'L'"):
        preprocess_for(16)(Image.new("F", (20, 30), 0.5))
