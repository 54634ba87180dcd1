"""Image models of others, from timm, to probe beside CLIP (CLIP paper, figure 10 and appendix A).

Their features are what their classifier would get: pooled, for a ViT the class token's. Weights are those that are on
this machine already, or in a file; nothing is downloaded, and nothing is left to chance unless that is asked for.
"""

from __future__ import annotations

import difflib
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn

from pipeline.model.images.preprocess import Preprocess, eight_bits

PREFIX = "timm/"
RANDOM = "random"
"""As weights: none, so the network is as it is before training. A control for probes."""

BASELINES: Mapping[str, tuple[str, ...]] = {
    "ResNet": tuple(f"resnet{depth}.tv_in1k" for depth in (50, 101, 152)),
    "EfficientNet": tuple(f"tf_efficientnet_b{size}.aa_in1k" for size in range(8)),
    "EfficientNet, noisy student": (
        *(f"tf_efficientnet_b{size}.ns_jft_in1k" for size in range(8)),
        "tf_efficientnet_l2.ns_jft_in1k_475",
        "tf_efficientnet_l2.ns_jft_in1k",
    ),
    "Instagram": tuple(f"resnext101_32x{width}d.fb_wsl_ig1b_ft_in1k" for width in (8, 16, 32)),
    "BiT-M": tuple(f"resnetv2_{size}_bit.goog_in21k" for size in ("50x1", "50x3", "101x1", "101x3", "152x2", "152x4")),
    "ViT, ImageNet-21k": tuple(
        f"vit_{size}_224.orig_in21k" for size in ("base_patch32", "base_patch16", "large_patch16", "huge_patch14")
    ),
}
"""The models that the paper probes, as far as timm has them, by family, in timm's names."""


class Baseline(nn.Module):
    """An image model without its classifier."""

    def __init__(self, name: str, trunk: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.trunk = trunk

    def encode_image(self, images: Tensor) -> Tensor:
        """Prepared images float B x 3 x S x S -> features B x D, as the classifier would get them."""
        features: Tensor = self.trunk(images)
        return features


def load_baseline(name: str, weights: str | Path | None = None, device: str = "cpu") -> tuple[Baseline, Preprocess]:
    """An image model, ready for use, and what prepares its images as its makers did for their evaluation.

    Args:
        name: one of BASELINES, with or without PREFIX; what comes after the dot may be left out where that is clear.
        weights: a file of the network's weights in timm's names (.safetensors, or what torch saved; with or without a
            classifier); RANDOM for none; unset, what timm, torch or huggingface_hub has on this machine.
        device: where the model runs.

    Raises:
        ValueError: the name is unknown, or the file is damaged or of another model.
        FileNotFoundError: there are no weights; the message says what to fetch.
    """
    import timm  # takes seconds, which only those who load one should pay
    from timm.data.config import resolve_model_data_config
    from timm.data.transforms_factory import create_transform

    full_name = baseline_name(name)
    config: Any = timm.get_pretrained_cfg(full_name)
    place = _find_weights(full_name, config.hf_hub_id, config.url) if weights is None else Path(weights)
    state = None if str(weights) == RANDOM else _read(place)
    trunk: Any = timm.create_model(full_name, pretrained=False)
    trunk.reset_classifier(0)
    if state is not None:
        own = {key: value for key, value in state.items() if not key.startswith(f"{config.classifier}.")}
        _fill(trunk, own, full_name, place)
    transform = create_transform(**resolve_model_data_config(trunk), is_training=False)  # type: ignore[no-untyped-call]

    def preprocess(image: Image.Image) -> Tensor:
        pixels: Tensor = transform(eight_bits(image).convert("RGB"))
        return pixels

    return Baseline(full_name, trunk).to(device).eval(), preprocess


def baseline_name(name: str) -> str:
    """The full name of timm's.

    Raises:
        ValueError: there is no such model in BASELINES, or there are several.
    """
    known = [full_name for family in BASELINES.values() for full_name in family]
    asked = name.removeprefix(PREFIX)
    fitting = [full_name for full_name in known if asked in (full_name, full_name.partition(".")[0])]
    if len(fitting) == 1:
        return fitting[0]
    near = (
        fitting
        or difflib.get_close_matches(asked, known, n=4, cutoff=0.3)
        or [names[0] for names in BASELINES.values()]
    )
    problem = "may be one of several" if fitting else "is not known"
    raise ValueError(f"model={PREFIX}{asked} {problem}; try {', '.join(PREFIX + full_name for full_name in near)}")


def no_text(name: str) -> Callable[[str | list[str]], Tensor]:
    """In the place of a tokenizer: a model of images alone has none, and says so."""

    def tokenize(_texts: str | list[str]) -> Tensor:
        raise ValueError(f"model={name} knows images only; texts need a CLIP")

    return tokenize


def _find_weights(full_name: str, repository: str, url: str) -> Path:
    """The weights of a model where earlier downloads lie."""
    from huggingface_hub import try_to_load_from_cache

    for file in ("model.safetensors", "pytorch_model.bin"):
        cached = try_to_load_from_cache(repository, file)
        if isinstance(cached, str):  # else None, or a mark that there is no such file
            return Path(cached)
    hub = Path(torch.hub.get_dir(), "checkpoints")
    if url and (hub / Path(url).name).exists():
        return hub / Path(url).name
    raise FileNotFoundError(
        f"model={PREFIX}{full_name}: its weights are not on this machine. Fetch model.safetensors of "
        f"https://huggingface.co/{repository} and give the file as weights, or let "
        f"`hf download {repository} model.safetensors` put it where it is found"
    )


def _read(place: Path) -> dict[str, Tensor]:
    """The tensors of a file; nothing in it is executed."""
    from timm.models import load_state_dict

    if not place.is_file():
        raise FileNotFoundError(f"weights={place}: there is no such file")
    try:
        state: dict[str, Tensor] = load_state_dict(str(place), weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise ValueError(f"weights={place}: damaged, or more than plain tensors ({error})") from error
    return state


def _fill(trunk: nn.Module, state: Mapping[str, Tensor], full_name: str, place: Path) -> None:
    """Load all weights, and refuse those that do not fit."""
    own = trunk.state_dict()
    # Older files do not count batches, and only training asks how many there were
    state = {key: value for key, value in own.items() if key.endswith(".num_batches_tracked")} | dict(state)
    differing = {
        "missing": sorted(own.keys() - state.keys()),
        "unexpected": sorted(state.keys() - own.keys()),
        "misshapen": sorted(key for key in own.keys() & state.keys() if own[key].shape != state[key].shape),
    }
    told = [
        f"{len(keys)} {kind} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for kind, keys in differing.items()
        if keys
    ]
    if told:
        raise ValueError(f"weights={place} are not those of {PREFIX}{full_name}: {'; '.join(told)}")
    trunk.load_state_dict(state)
