import numpy as np
import pytest

from pipeline.model.encoders.duplicate_detector import squash
from pipeline.model.images.random_crop import Pixels
from pipeline.train.detector import distortions
from pipeline.train.detector.distortions import NUM_DRAWS, distort

SIDE = 64


def picture(seed: int = 0, shape: tuple[int, int] = (90, 120)) -> Pixels:
    import cv2

    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC), np.uint8)


def random_draws(seed: int) -> list[float]:
    return [float(value) for value in np.random.default_rng(seed).random(NUM_DRAWS)]


def correlation(first: Pixels, second: Pixels) -> float:
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])


@pytest.mark.parametrize("shape", [(90, 120), (300, 40), (16, 16)])
def test_a_version_is_determined_by_its_draws(shape: tuple[int, int]) -> None:
    pixels = picture(shape=shape)
    versions = [distort(pixels, SIDE, random_draws(seed), flips=True) for seed in range(20)]
    assert {version.shape for version in versions} == {(3, SIDE, SIDE)}
    assert {version.dtype for version in versions} == {np.dtype(np.uint8)}
    assert np.array_equal(distort(pixels, SIDE, random_draws(3), flips=True), versions[3])
    assert len({version.tobytes() for version in versions}) == 20


def test_versions_are_more_similar_to_their_picture_than_to_others() -> None:
    pictures = [picture(seed) for seed in range(8)]
    squares = [squash(pixels, SIDE) for pixels in pictures]
    num_correct = 0
    for i, pixels in enumerate(pictures):
        for seed in range(10):
            version = distort(pixels, SIDE, random_draws(100 * i + seed), flips=False)
            num_correct += int(np.argmax([correlation(version, square) for square in squares])) == i
    assert num_correct >= 72


@pytest.mark.parametrize("draw", [0.0, 0.5, np.nextafter(1, 0)])
def test_extreme_draws_make_valid_versions(draw: float) -> None:
    assert distort(picture(), SIDE, [float(draw)] * NUM_DRAWS, flips=True).shape == (3, SIDE, SIDE)


def test_middle_draws_barely_change_the_picture() -> None:
    assert correlation(distort(picture(), SIDE, [0.5] * NUM_DRAWS, flips=True), squash(picture(), SIDE)) > 0.9


def test_versions_are_mirrored_only_if_flips_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distortions, "FLIP_SHARE", 1.0)
    draws = [0.5] * NUM_DRAWS
    assert np.array_equal(
        distort(picture(), SIDE, draws, flips=True)[:, :, ::-1], distort(picture(), SIDE, draws, flips=False)
    )
