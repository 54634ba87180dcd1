import torch

from pipeline import paper
from pipeline.model.towers.image_tower import normalise


def test_normalise_uses_the_papers_mean_and_deviation() -> None:
    images = torch.tensor([0, 128, 255], dtype=torch.uint8).view(3, 1, 1).expand(3, 2, 2)
    result = normalise(images[None])[0]
    for channel, value in enumerate((0, 128, 255)):
        mean, deviation = paper.IMAGE_MEAN.value[channel], paper.IMAGE_STD.value[channel]
        torch.testing.assert_close(result[channel], torch.full((2, 2), (value / 255 - mean) / deviation))
