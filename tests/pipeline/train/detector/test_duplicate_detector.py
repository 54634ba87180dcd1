from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.model.encoders.duplicate_detector import Detector, detector_config, squash
from pipeline.model.images.random_crop import decode
from pipeline.train.detector.distortions import NUM_DRAWS, distort
from pipeline.train.detector.duplicate_detector import (
    DetectorTraining,
    distortion_draws,
    images_of_step,
    new_detector,
    train_detector,
)
from tests.pipeline.data.rows import encode, photo_like

TINY = detector_config("tiny")


def train(images: list[bytes], training: DetectorTraining) -> tuple[Detector, list[float]]:
    detector = new_detector(TINY, training.seed)
    return detector, [step.loss for step in train_detector(detector, images, training)]


def share_identified(detector: Detector, images: list[bytes]) -> float:
    """The share of distorted copies whose nearest picture is the original."""
    pictures = [decode(image) for image in images]
    draws = np.random.default_rng(7).random((len(pictures), NUM_DRAWS))
    copies = [distort(p, 64, row.tolist(), flips=True) for p, row in zip(pictures, draws, strict=True)]
    with torch.inference_mode():
        originals = detector(torch.from_numpy(np.stack([squash(p, 64) for p in pictures])))
        nearest = (detector(torch.from_numpy(np.stack(copies))) @ originals.T).argmax(dim=1)
    return float((nearest == torch.arange(len(pictures))).float().mean())


@pytest.mark.realdata
def test_a_trained_detector_finds_copies_that_an_untrained_one_misses(clip_data: Path) -> None:
    images = pq.read_table(clip_data / "photos.parquet", columns=["image"])["image"].to_pylist()
    training = DetectorTraining(batch_size=48, num_images=48 * 16, learning_rate=3e-3, flips=True)
    detector, losses = train(images[:480], training)
    assert np.mean(losses[-4:]) < np.mean(losses[:4]) - 0.5
    held_out = images[-250:]
    trained, untrained = share_identified(detector, held_out), share_identified(new_detector(TINY, 0).eval(), held_out)
    assert trained > max(0.15, 3 * untrained), (trained, untrained)


def test_the_same_seed_gives_the_same_detector() -> None:
    images = [encode(photo_like(seed)) for seed in range(9)]
    training = DetectorTraining(batch_size=4, num_images=12)
    (first, losses), (second, _) = train(images, training), train(images, training)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    _, other_losses = train(images, DetectorTraining(batch_size=4, num_images=12, seed=1))
    assert losses != other_losses


def test_each_epoch_uses_every_image_once_in_a_new_order() -> None:
    training = DetectorTraining(batch_size=3, num_images=30)
    epochs = [
        np.concatenate([images_of_step(epoch * 3 + step, 9, training) for step in range(3)]) for epoch in range(2)
    ]
    assert [sorted(epoch.tolist()) for epoch in epochs] == [list(range(9))] * 2
    assert epochs[0].tolist() != epochs[1].tolist()


def test_draws_are_uniform_and_distinct() -> None:
    numbers = np.arange(200)
    first, second = distortion_draws(0, numbers, 0), distortion_draws(1, numbers, 0)
    assert first.shape == (200, 2, NUM_DRAWS)
    assert len(np.unique(np.concatenate([first, second]))) == first.size * 2
    assert np.allclose(first.mean(axis=0), 0.5, atol=0.12)
    assert np.array_equal(distortion_draws(0, numbers[50:60], 0), first[50:60])


def test_invalid_training_options_are_reported() -> None:
    images = [encode(photo_like(seed)) for seed in range(4)]
    with pytest.raises(ValueError, match="batch_size = 8: there are only 4 images"):
        train(images, DetectorTraining(batch_size=8, num_images=8))
    with pytest.raises(ValueError, match=r"learning_rate = 1e\+30: the loss of step"):
        train(images, DetectorTraining(batch_size=4, num_images=16, learning_rate=1e30))
    with pytest.raises(ValueError, match="batch_size = 1: must be at least 2"):
        DetectorTraining(batch_size=1)
    with pytest.raises(ValueError, match="temperature = 0"):
        DetectorTraining(temperature=0)
