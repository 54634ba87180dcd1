from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.data.duplicates.embeddings import to_column
from pipeline.model.encoders import duplicate_detector
from pipeline.model.encoders.duplicate_detector import Detector, detector_config
from pipeline.model.encoders.image_encoder import encoder_from_files
from pipeline.model.objectives.clip import CLIP
from pipeline.model.tokenizer.tokenizer import Tokenizer
from pipeline.model.weights import model_folder
from pipeline.model.weights.model_folder import Model
from tests.pipeline.data.rows import encode, photo_like
from tests.pipeline.model.models import CONFIG

IMAGES = [encode(photo_like(seed)) for seed in range(5)] + [encode(photo_like(0), "JPEG", quality=60)]


def files_of_detector() -> dict[str, bytes]:
    torch.manual_seed(0)
    return duplicate_detector.to_files(Detector(detector_config("tiny")))


def files_of_model() -> dict[str, bytes]:
    captions = [f"a {i} of {i * i}" for i in range(500)]
    tokenizer = Tokenizer.train(captions, CONFIG.text.vocab_size, CONFIG.text.context_length)
    torch.manual_seed(0)
    text = replace(CONFIG.text, vocab_size=tokenizer.vocab_size)
    return model_folder.to_files(Model(CLIP(replace(CONFIG, text=text)), tokenizer))


@pytest.mark.parametrize("kind", ["detector", "model"])
def test_an_encoder_from_a_folder(kind: str) -> None:
    files = files_of_detector() if kind == "detector" else files_of_model()
    embeddings = encoder_from_files(files, "here", 4, "cpu")(IMAGES)
    assert embeddings.dtype == np.float32
    assert embeddings.shape[0] == len(IMAGES)
    to_column(embeddings)  # checks that the length is one
    again = encoder_from_files(files, "here", 1, "cpu")(IMAGES)
    assert np.allclose(embeddings, again, atol=1e-5)
    others = embeddings[:5] @ embeddings[5]
    assert others[0] > 0.95
    assert others[0] == others.max()


def test_files_of_neither_kind_raise() -> None:
    with pytest.raises(FileNotFoundError, match="runs/x contains no image encoder"):
        encoder_from_files({}, "runs/x", 4, "cpu")


def test_an_image_that_cannot_be_decoded_raises() -> None:
    with pytest.raises(ValueError, match="cannot be decoded"):
        encoder_from_files(files_of_detector(), "here", 4, "cpu")([b"no image"])
