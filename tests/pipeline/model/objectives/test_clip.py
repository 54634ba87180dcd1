import math

import torch

from pipeline.model.towers.image_tower import normalise
from tests.pipeline.model.models import small_batch, small_clip


def test_forward_gives_scaled_cosine_similarities() -> None:
    model = small_clip().eval()
    images, tokens, _ = small_batch(4)
    pictures = normalise(images)
    logits_per_image, logits_per_text = model(pictures[:3], tokens)
    expected = torch.nn.functional.cosine_similarity(
        model.encode_image(pictures[:3])[:, None], model.encode_text(tokens)[None], dim=-1
    )
    torch.testing.assert_close(logits_per_image, expected / 0.07)  # the initial temperature
    torch.testing.assert_close(logits_per_text, logits_per_image.T)


def test_normalised_features_are_float32_of_length_one_under_autocast() -> None:
    model = small_clip().eval()
    images, tokens, _ = small_batch(2)
    with torch.autocast("cpu", torch.bfloat16):
        features = model.encode_image(normalise(images), normalize=True), model.encode_text(tokens, normalize=True)
    for feature in features:
        assert feature.dtype == torch.float32
        torch.testing.assert_close(feature.norm(dim=-1), torch.ones(2))


def test_the_logit_scale_is_limited_to_100() -> None:
    model = small_clip()
    model.logit_scale.data.fill_(9.0)
    model.clamp_logit_scale()
    assert math.isclose(model.logit_scale.exp().item(), 100, rel_tol=1e-5)
    model.logit_scale.data.fill_(1.0)
    model.clamp_logit_scale()
    assert model.logit_scale.item() == 1.0
