import io
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pipeline.eval.features import encoder
from pipeline.eval.features.encoder import IMAGE_FEATURES, TEXT_FEATURES, Encoder, features_of
from pipeline.model.images.random_crop import decode
from pipeline.model.weights.model_folder import Model
from tests.pipeline.eval.pictures import draw
from tests.pipeline.pictures.files import ALPHA_MODES, SHOWN, with_alpha

IMAGES = [draw(shape, colour) for shape in ("circle", "square") for colour in ("red", "green", "blue")]


class StandIn(torch.nn.Module):
    """A model with predictable embeddings: mean colour of an image, length and first letter of a text."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = torch.nn.Parameter(torch.tensor(2.0))
        self.batches: list[int] = []
        self.config = SimpleNamespace(image=SimpleNamespace(image_size=8))

    def encode_image(self, images: Tensor) -> Tensor:
        self.batches.append(len(images))
        return images.mean(dim=(2, 3)).bfloat16()

    def encode_text(self, tokens: Tensor) -> Tensor:
        self.batches.append(len(tokens))
        return tokens.float()


def preprocess(picture: Image.Image) -> Tensor:
    assert picture.mode == "RGB"
    pixels = torch.tensor(list(picture.resize((8, 8)).tobytes()), dtype=torch.float32)
    return pixels.reshape(8, 8, 3).permute(2, 0, 1) / 255


def tokenize(texts: list[str]) -> Tensor:
    return torch.tensor([[len(text), ord(text[0])] for text in texts])


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    monkeypatch.setattr(encoder, "preprocess_for", lambda image_size: {8: preprocess}[image_size])
    return StandIn()


def encoder_of(network: StandIn, batch_size: int) -> Encoder:
    return Encoder(Model(cast(Any, network), cast(Any, tokenize)), batch_size, "cpu")


def test_images_are_encoded_in_batches_and_numbered(stand_in: StandIn) -> None:
    table = encoder_of(stand_in, 4).encode_images(IMAGES, 100, "test.parquet")
    assert table.schema == IMAGE_FEATURES
    assert table["sample"].to_pylist() == [100, 101, 102, 103, 104, 105]
    assert stand_in.batches == [4, 2]
    assert features_of(table).argmax(dim=1).tolist() == [0, 1, 2, 0, 1, 2]


def test_the_batch_size_does_not_change_features(stand_in: StandIn) -> None:
    single, all_at_once = (
        encoder_of(stand_in, size).encode_images(IMAGES, 0, "x").column("features") for size in (1, 6)
    )
    assert single.to_pylist() == all_at_once.to_pylist()
    assert stand_in.batches == [1] * 6 + [6]


def test_text_features_carry_their_text_and_the_models_scale(stand_in: StandIn) -> None:
    table = encoder_of(stand_in, 2).encode_texts(["red", "blue", "a"])
    assert table.schema == TEXT_FEATURES
    assert table["text"].to_pylist() == ["red", "blue", "a"]
    assert features_of(table).tolist() == [[3, ord("r")], [4, ord("b")], [1, ord("a")]]
    assert table["logit_scale"].to_pylist() == [pytest.approx(torch.e**2)] * 3


@pytest.mark.parametrize("broken", [b"", b"<html>", IMAGES[0][: len(IMAGES[0]) // 2]])
def test_an_unreadable_image_is_named(broken: bytes, stand_in: StandIn) -> None:
    with pytest.raises(ValueError, match=r"^sets/x/test\.parquet: the image of sample 9 cannot be read"):
        encoder_of(stand_in, 4).encode_images([IMAGES[0], IMAGES[1], broken], 7, "sets/x/test.parquet")


def encode_as(mode: str, kind: str) -> bytes:
    grey = np.linspace(0, 255, 20 * 20).reshape(20, 20)
    values = {"L": grey.astype(np.uint8), "I;16": (grey.astype(np.uint16) << 8) + 77, "F": grey.astype(np.float32)}
    sink = io.BytesIO()
    Image.fromarray(values[mode]).save(sink, kind)
    return sink.getvalue()


def test_an_image_is_not_converted_before_preprocessing() -> None:
    """Preprocessing uses the upper 8 of 16 bits. An early conversion would turn such an image white."""
    four_at_once = encoder_of(StandIn(), 4)
    table = four_at_once.encode_images([encode_as("L", "PNG"), encode_as("I;16", "PNG")], 0, "x")
    eight_bits, sixteen_bits = features_of(table)
    assert torch.equal(eight_bits, sixteen_bits)
    with pytest.raises(ValueError, match=r"x: the image of sample 7 cannot be read \(an image of mode F has no known"):
        four_at_once.encode_images([encode_as("F", "TIFF")], 7, "x")


@pytest.mark.parametrize("name", [*SHOWN, *ALPHA_MODES])
def test_images_are_decoded_as_in_training(name: str) -> None:
    """python-pillow/Pillow#8957: the EXIF data of an image of ImageNet stops Pillow."""
    image = SHOWN[name]() if name in SHOWN else with_alpha(name, 6)
    upright = io.BytesIO()
    Image.fromarray(decode(image)).save(upright, "PNG")
    ours, plain = features_of(encoder_of(StandIn(), 4).encode_images([image, upright.getvalue()], 0, "x"))
    assert torch.equal(ours, plain) or torch.allclose(ours, plain, atol=0.02), "grey pictures are converted last"


def test_a_diverged_model_is_refused(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stand_in, "encode_image", lambda images: torch.full((len(images), 4), float("nan")))
    with pytest.raises(ValueError, match="not finite"):
        encoder_of(stand_in, 4).encode_images(IMAGES, 0, "x")
