import json

import numpy as np
import pytest
import torch

from pipeline.model.encoders.duplicate_detector import (
    CONFIG_FILE,
    DETECTORS,
    WEIGHTS_FILE,
    Detector,
    detector_config,
    from_files,
    squash,
    to_files,
)


@pytest.fixture(scope="module")
def detector() -> Detector:
    torch.manual_seed(0)
    return Detector(detector_config("tiny")).eval()


def pixels(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_embeddings_have_length_one_and_do_not_depend_on_the_batch(detector: Detector) -> None:
    images = pixels(5)
    detector.train()  # batch norms would make a difference here
    together, separate = detector(images), torch.cat([detector(image[None]) for image in images])
    detector.eval()
    assert together.shape == (5, 128)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(together, separate, atol=1e-5, rtol=0)


def test_a_detector_can_be_read_from_its_files(detector: Detector) -> None:
    images = pixels(3)
    loaded = from_files(to_files(detector), "here")
    assert loaded.config == detector.config
    assert torch.equal(loaded.eval()(images), detector(images))


def test_damaged_files_are_named(detector: Detector) -> None:
    files = to_files(detector)
    with pytest.raises(FileNotFoundError, match=f"there is not a duplicate detector: it lacks {WEIGHTS_FILE}"):
        from_files({CONFIG_FILE: files[CONFIG_FILE]}, "there")
    with pytest.raises(ValueError, match="damaged"):
        from_files(files | {WEIGHTS_FILE: files[WEIGHTS_FILE][:100]}, "there")
    with pytest.raises(ValueError, match="not a valid detector configuration"):
        from_files(files | {CONFIG_FILE: b"{}"}, "there")
    other = json.loads(files[CONFIG_FILE]) | {"embed_dim": 7}
    with pytest.raises(ValueError, match="does not fit"):
        from_files(files | {CONFIG_FILE: json.dumps(other).encode()}, "there")


def test_the_whole_picture_is_squashed() -> None:
    wide = np.zeros((20, 200, 3), np.uint8)
    wide[:, :100] = 255
    square = squash(wide, 64)
    assert square.shape == (3, 64, 64)
    assert (square[:, :, :31] == 255).all()
    assert (square[:, :, 33:] == 0).all()


def test_an_unknown_detector_raises() -> None:
    with pytest.raises(ValueError, match="detector=huge is not known; choose one of resnet50, tiny"):
        detector_config("huge")


def test_the_full_size_detector_has_no_batch_norms() -> None:
    with torch.device("meta"):
        network = Detector(DETECTORS["resnet50"])
    kinds = {type(module).__name__ for module in network.modules()}
    assert "StdConv2d" in kinds
    assert any("GELU" in kind for kind in kinds)
    assert not any("BatchNorm" in kind for kind in kinds)
