import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import paper
from pipeline.model.image import normalise, preprocess_for


def test_normalise_uses_the_papers_mean_and_deviation() -> None:
    images = torch.tensor([0, 128, 255], dtype=torch.uint8).view(3, 1, 1).expand(3, 2, 2)
    result = normalise(images[None])[0]
    for channel, value in enumerate((0, 128, 255)):
        mean, deviation = paper.IMAGE_MEAN.value[channel], paper.IMAGE_STD.value[channel]
        torch.testing.assert_close(result[channel], torch.full((2, 2), (value / 255 - mean) / deviation))


@pytest.mark.parametrize("size", [(64, 64), (200, 90), (31, 77), (5, 3)])
def test_preprocess_gives_the_centre_square(size: tuple[int, int]) -> None:
    """Red in the centre, blue at both ends of the longer axis."""
    width, height = size
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 2] = 255
    side = min(size)
    top, left = (height - side) // 2, (width - side) // 2
    pixels[top : top + side, left : left + side] = (255, 0, 0)
    result = preprocess_for(32)(Image.fromarray(pixels))
    assert result.shape == (3, 32, 32)
    assert result.dtype == torch.float32
    centre = result[:, 12:20, 12:20].mean(dim=(1, 2))
    red = normalise(torch.tensor([255, 0, 0], dtype=torch.uint8).view(3, 1, 1)).flatten()
    torch.testing.assert_close(centre, red, atol=0.05, rtol=0.05)


def test_preprocess_takes_other_modes() -> None:
    for mode in ("L", "RGBA", "P", "CMYK", "1"):
        assert preprocess_for(16)(Image.new(mode, (20, 30))).shape == (3, 16, 16)
