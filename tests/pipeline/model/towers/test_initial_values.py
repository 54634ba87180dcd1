"""Check the released code's initial values: mean, deviation and distribution of every group of parameters."""

import math
import re
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from pipeline.model.config import ImageTowerConfig, ModelConfig, TextTowerConfig
from pipeline.model.objectives.clip import CLIP
from pipeline.model.towers.image_tower import ImageTower
from pipeline.model.towers.initial_values import is_paper_architecture

EMBED_DIM, WIDTH, LAYERS = 96, 128, 3
TEXT = TextTowerConfig(width=WIDTH, heads=2, layers=LAYERS, vocab_size=2048)
TRANSFORMER = ImageTowerConfig(
    architecture="vit_base_patch16_clip_quickgelu_224",
    image_size=112,
    options={"img_size": 112, "embed_dim": WIDTH, "depth": 2, "num_heads": 2},
)
RESNET = ImageTowerConfig(architecture="resnet50_clip", image_size=224)

ZEROS, ONES = (0.0, 0.0, "constant"), (1.0, 0.0, "constant")


def normal(std: float) -> tuple[float, float, str]:
    return 0.0, std, "normal"


def uniform(bound: float) -> tuple[float, float, str]:
    return 0.0, bound / math.sqrt(3), "uniform"


TEXT_VALUES = {
    r"logit_scale": (math.log(1 / 0.07), 0.0, "constant"),
    r"text_tower\.token_embedding\.weight": normal(0.02),
    r"text_tower\.position_embedding": normal(0.01),
    r"text_tower\.blocks\.\d\.attention_in\.weight": normal(WIDTH**-0.5),
    r"text_tower\.blocks\.\d\.(attention|mlp)_out\.weight": normal(WIDTH**-0.5 * (2 * LAYERS) ** -0.5),
    r"text_tower\.blocks\.\d\.mlp_in\.weight": normal((2 * WIDTH) ** -0.5),
    r"text_tower\.blocks\.\d\.(attention|mlp)_(in|out)\.bias": ZEROS,
    r"text_tower\.projection\.weight": normal(WIDTH**-0.5),
    r"text_tower\..*norm\.weight": ONES,
    r"text_tower\..*norm\.bias": ZEROS,
}
TRANSFORMER_VALUES = {
    r"image_tower\.trunk\.(cls_token|pos_embed)": normal(WIDTH**-0.5),
    r"image_tower\.projection\.weight": normal(WIDTH**-0.5),
    # Defaults of torch in the released code: Conv2d, MultiheadAttention, Linear, LayerNorm
    r"image_tower\.trunk\.patch_embed\.proj\.weight": uniform((3 * 16 * 16) ** -0.5),
    r"image_tower\.trunk\.blocks\.\d\.attn\.qkv\.weight": uniform(math.sqrt(6 / (4 * WIDTH))),
    r"image_tower\.trunk\.blocks\.\d\.attn\.(qkv|proj)\.bias": ZEROS,
    r"image_tower\.trunk\.blocks\.\d\.(attn\.proj|mlp\.fc1)\.weight": uniform(WIDTH**-0.5),
    r"image_tower\.trunk\.blocks\.\d\.mlp\.fc1\.bias": uniform(WIDTH**-0.5),
    r"image_tower\.trunk\.blocks\.\d\.mlp\.fc2\.(weight|bias)": uniform((4 * WIDTH) ** -0.5),
    r"image_tower\.trunk\..*norm(1|2|_pre)?\.weight": ONES,
    r"image_tower\.trunk\..*norm(1|2|_pre)?\.bias": ZEROS,
}
RESNET_VALUES = {
    r"image_tower\.trunk\.head\.([qkv]\.weight|pos_embed)": normal(2048**-0.5),
    r"image_tower\.trunk\.head\.[qkv]\.bias": uniform(2048**-0.5),
    r"image_tower\.projection\.weight": normal(2048**-0.5),
    r"image_tower\.projection\.bias": uniform(2048**-0.5),
    r"image_tower\.trunk\.stages\.\d\.\d\.conv3_1x1\.bn\.weight": ZEROS,
    r"image_tower\.trunk\..*\.conv\.weight": (0.0, math.nan, "uniform"),  # NaN: the bound follows from the fan-in
    r"image_tower\.trunk\..*bn\.(weight|running_var)": ONES,
    r"image_tower\.trunk\..*bn\.(bias|running_mean|num_batches_tracked)": ZEROS,
}


def groups(state: dict[str, Tensor], values: dict[str, tuple[float, float, str]]) -> Iterator[tuple[str, str, Tensor]]:
    """Yield each parameter with the first pattern that matches its name."""
    for name, tensor in state.items():
        matching = [pattern for pattern in values if re.fullmatch(pattern, name)]
        assert matching, f"{name} has no known initial value"
        yield matching[0], name, tensor


@pytest.mark.parametrize(
    ("image", "values"), [(TRANSFORMER, TRANSFORMER_VALUES), (RESNET, RESNET_VALUES)], ids=["transformer", "resnet"]
)
def test_every_parameter_starts_as_in_the_released_code(
    image: ImageTowerConfig, values: dict[str, tuple[float, float, str]]
) -> None:
    torch.manual_seed(0)
    state = CLIP(ModelConfig(embed_dim=EMBED_DIM, image=image, text=TEXT)).state_dict()
    matched = set()
    for pattern, name, tensor in groups(state, TEXT_VALUES | values):
        mean, std, kind = (TEXT_VALUES | values)[pattern]
        if math.isnan(std):
            std = math.prod(tensor.shape[1:]) ** -0.5 / math.sqrt(3)
        check(name, tensor.double().flatten(), mean, std, kind)
        matched.add(pattern)
    assert matched == set(TEXT_VALUES | values)


def check(name: str, values: Tensor, mean: float, std: float, kind: str) -> None:
    if kind == "constant":
        torch.testing.assert_close(values, torch.full_like(values, mean), rtol=1e-6, atol=0.0, msg=name)
        return
    error = 5 / math.sqrt(len(values))
    assert abs(values.mean().item() - mean) < error * std, name
    assert values.std().item() == pytest.approx(std, rel=error), name
    largest = values.abs().max().item() / std
    if kind == "uniform":
        assert largest < math.sqrt(3) * (1 + 1e-6), name
    else:  # 7% of normal draws exceed 1.8 deviations, and practically none exceed six
        assert largest < 6, name
        assert len(values) < 100 or largest > 1.8, name


def test_initial_values_depend_on_torchs_seed() -> None:
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(ImageTower(TRANSFORMER, EMBED_DIM).state_dict())
    same = [{name for name in states[0] if torch.equal(states[0][name], other[name])} for other in states[1:]]
    assert same[0] == set(states[0])
    assert all(re.search(r"norm|attn\.(qkv|proj)\.bias", name) for name in same[1])


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("resnet50x64_clip", True),
        ("vit_large_patch14_clip_quickgelu_336", True),
        ("resnetv2_50d_gn", False),
        ("resnet50_clip_gap", False),
        ("vit_base_patch16_clip_224", False),
    ],
)
def test_architectures_of_the_paper(architecture: str, expected: bool) -> None:
    assert is_paper_architecture(architecture) == expected
