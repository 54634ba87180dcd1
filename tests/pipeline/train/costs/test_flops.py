"""Counted operations compared with formulas for the architectures and with published tables."""

import functools
from dataclasses import replace

import pytest
import torch

from pipeline.model.config import MODELS, OBJECTIVES, Objective, model_config
from pipeline.train.costs.flops import ForwardFlops, forward_flops, peak_flops, utilisation_per_rate

TABLE = {
    "RN50": 18.2, "RN101": 25.5, "RN50x4": 51.8, "RN50x16": 162.7, "RN50x64": 552.7,
    "ViT-B/32": 14.8, "ViT-B/16": 41.1, "ViT-L/14": 175.3, "ViT-L/14@336px": 395.2,
}  # fmt: skip
"""GFLOPs of a forward pass of both towers, from open_clip's profile, which also counts norms and activations."""
IMAGE_GIGA_MACS = {"ViT-B/32": 4.4, "ViT-B/16": 17.6, "ViT-L/14": 81.0, "ViT-L/14@336px": 191.0, "RN50": 6.0}
"""Billions of multiply-accumulates of the image tower alone, as given in papers."""
RESNETS = {"RN50": (64, (3, 4, 6, 3)), "RN50x4": (80, (4, 6, 10, 6)), "RN50x64": (128, (3, 15, 36, 10))}
TRANSFORMERS = {"ViT-B/32": (32, 768, 12), "ViT-L/14": (14, 1024, 24), "ViT-L/14@336px": (14, 1024, 24)}


@functools.cache
def flops_of(name: str) -> ForwardFlops:
    return forward_flops(model_config(name))


def transformer(length: int, width: int, layers: int) -> int:
    """12 w^2 weights per layer, with a multiplication and an addition per token, and the two products of attention."""
    return layers * (2 * 12 * width**2 * length + 2 * 2 * length**2 * width)


def convolution(side: int, kernel: int, channels_in: int, channels_out: int) -> int:
    return 2 * side**2 * kernel**2 * channels_in * channels_out


def resnet(size: int, width: int, depths: tuple[int, ...], embed_dim: int) -> int:
    """Three convolutions, four stages of bottlenecks, attention pooling with all tokens as queries, the projection."""
    side = size // 2
    stem = ((3, width // 2), (width // 2, width // 2), (width // 2, width))
    total = sum(convolution(side, 3, *channels) for channels in stem)
    side, channels = side // 2, width
    for stage, depth in enumerate(depths):
        inner = width * 2**stage
        for block in range(depth):
            stride = 2 if stage and not block else 1
            total += convolution(side, 1, channels, inner) + convolution(side, 3, inner, inner)
            side //= stride
            total += convolution(side, 1, inner, 4 * inner)
            total += convolution(side, 1, channels, 4 * inner) if not block else 0
            channels = 4 * inner
    length = side**2 + 1
    return total + 2 * 3 * channels**2 * length + 2 * 2 * length**2 * channels + 2 * channels * embed_dim


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_vision_transformers_equal_the_formula(name: str) -> None:
    config, (patch, width, layers) = model_config(name), TRANSFORMERS[name]
    patches = (config.image.image_size // patch) ** 2
    stem = 2 * patches * 3 * patch**2 * width
    expected = stem + transformer(patches + 1, width, layers) + 2 * width * config.embed_dim
    assert flops_of(name).image == expected


@pytest.mark.parametrize("name", RESNETS)
def test_resnets_equal_the_formula(name: str) -> None:
    config = model_config(name)
    assert flops_of(name).image == resnet(config.image.image_size, *RESNETS[name], config.embed_dim)


def test_text_towers_equal_the_formula() -> None:
    assert flops_of("ViT-L/14").text == transformer(77, 768, 12) + 2 * 768 * 768
    assert forward_flops(model_config("ViT-B/32"), 14).text == transformer(14, 512, 12) + 2 * 512 * 512


@pytest.mark.parametrize("name", TABLE)
def test_the_papers_models_equal_published_counts(name: str) -> None:
    flops = flops_of(name)
    assert (flops.image + flops.text) / 1e9 == pytest.approx(TABLE[name], rel=0.015)
    assert flops.training == 3 * (flops.image + flops.text)
    if name in IMAGE_GIGA_MACS:
        assert flops.image / 2e9 == pytest.approx(IMAGE_GIGA_MACS[name], rel=0.02)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_is_counted(objective: Objective) -> None:
    """All have the same image tower. In place of a text tower there may be a projection or the vocabulary."""
    config = replace(MODELS["tiny"], objective=objective)
    flops, text = forward_flops(config), config.text
    expected = {
        "contrastive": transformer(32, 128, 2) + 2 * 128 * 128,
        "contrastive-bag": 2 * text.width * config.embed_dim,
        "bag": 2 * config.embed_dim * text.vocab_size,
        # The image's token comes first in the input; the end token is only predicted
        "caption": transformer(32, 128, 2) + 2 * config.embed_dim * text.width + 31 * 2 * text.width * text.vocab_size,
    }
    assert flops.image == forward_flops(MODELS["tiny"]).image
    assert flops.text == expected[objective]


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100-PCIE-40GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("Tesla V100-SXM2-32GB", 125e12),
        ("Tesla V100-PCIE-16GB", 112e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA A10G", None),
        ("NVIDIA L40", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("AMD Instinct MI250X", None),
    ],
)
def test_peaks_are_found_by_whole_words(name: str, peak: float | None) -> None:
    assert peak_flops(name) == peak


def test_utilisation_is_the_share_of_the_peak_that_samples_need(monkeypatch: pytest.MonkeyPatch) -> None:
    """850 samples/s of ViT-B/32 on an A100, as open_clip's users report, are 12% of the peak."""
    config = model_config("ViT-B/32")
    assert utilisation_per_rate(config, torch.device("cpu"), 8) is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "NVIDIA A100-SXM4-80GB")
    per_rate = utilisation_per_rate(config, torch.device("cuda", 0), 1)
    assert per_rate is not None
    assert 850 * per_rate == pytest.approx(0.12, abs=0.002)
    assert utilisation_per_rate(config, torch.device("cuda", 0), 8) == pytest.approx(per_rate / 8)
