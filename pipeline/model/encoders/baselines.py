"""Load image models from timm for comparison with CLIP in linear probes (CLIP paper, figure 10 and appendix A).

Their features are the input of their classifier: pooled features, or a ViT's class token. Weights are read from a file
or from the caches on this machine. Nothing is downloaded, and weights are random only if explicitly requested.
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
"""Value of `weights` that leaves the network untrained, as a control for probes."""

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
"""The models that the paper probes and timm has: timm's names by family."""


class Baseline(nn.Module):
    """An image model without its classifier."""

    def __init__(self, name: str, trunk: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.trunk = trunk

    def encode_image(self, images: Tensor) -> Tensor:
        """Preprocessed images float B x 3 x S x S -> features B x D, the classifier's input."""
        features: Tensor = self.trunk(images)
        return features


def load_baseline(name: str, weights: str | Path | None = None, device: str = "cpu") -> tuple[Baseline, Preprocess]:
    """Load an image model, and the preprocessing that its authors evaluated it with.

    Args:
        name: one of BASELINES, with or without PREFIX. The part after the dot may be omitted if the name stays unique.
        weights: a file of weights under timm's names, from safetensors or torch, with or without a classifier; or
            RANDOM for an untrained network. By default, the weights in the caches of torch or huggingface_hub.
        device: where the model runs.

    Raises:
        ValueError: the name is unknown, or the file is damaged or belongs to another model.
        FileNotFoundError: the weights do not exist. The message says what to download.
    """
    import timm  # takes seconds, so only loading a model imports it
    from timm.data.config import resolve_model_data_config
    from timm.data.transforms_factory import create_transform

    full_name = baseline_name(name)
    config: Any = timm.get_pretrained_cfg(full_name)
    path = _find_weights(full_name, config.hf_hub_id, config.url) if weights is None else Path(weights)
    state = None if str(weights) == RANDOM else _read(path)
    trunk: Any = timm.create_model(full_name, pretrained=False)
    trunk.reset_classifier(0)
    if state is not None:
        without_classifier = {key: value for key, value in state.items() if not key.startswith(f"{config.classifier}.")}
        _load_weights(trunk, without_classifier, full_name, path)
    transform = create_transform(**resolve_model_data_config(trunk), is_training=False)  # type: ignore[no-untyped-call]

    def preprocess(image: Image.Image) -> Tensor:
        pixels: Tensor = transform(eight_bits(image).convert("RGB"))
        return pixels

    return Baseline(full_name, trunk).to(device).eval(), preprocess


def baseline_name(name: str) -> str:
    """The full name in timm of a baseline.

    Raises:
        ValueError: no model of BASELINES, or more than one, has this name.
    """
    known = [full_name for family in BASELINES.values() for full_name in family]
    plain = name.removeprefix(PREFIX)
    matches = [full_name for full_name in known if plain in (full_name, full_name.partition(".")[0])]
    if len(matches) == 1:
        return matches[0]
    suggestions = (
        matches
        or difflib.get_close_matches(plain, known, n=4, cutoff=0.3)
        or [names[0] for names in BASELINES.values()]
    )
    problem = "is ambiguous" if matches else "is not known"
    raise ValueError(f"model={PREFIX}{plain} {problem}; try {', '.join(PREFIX + match for match in suggestions)}")


def refuse_texts(name: str) -> Callable[[str | list[str]], Tensor]:
    """A stand-in for the tokenizer of an image-only model; it raises ValueError when it is called."""

    def tokenize(_texts: str | list[str]) -> Tensor:
        raise ValueError(f"model={name} encodes images only; texts need a CLIP")

    return tokenize


def _find_weights(full_name: str, repository: str, url: str) -> Path:
    """Find a model's weights among earlier downloads."""
    from huggingface_hub import try_to_load_from_cache

    for file in ("model.safetensors", "pytorch_model.bin"):
        cached = try_to_load_from_cache(repository, file)
        if isinstance(cached, str):  # else None, or a marker that the repository lacks the file
            return Path(cached)
    hub = Path(torch.hub.get_dir(), "checkpoints")
    if url and (hub / Path(url).name).exists():
        return hub / Path(url).name
    raise FileNotFoundError(
        f"model={PREFIX}{full_name}: its weights are not on this machine. Download model.safetensors from "
        f"https://huggingface.co/{repository} and give the file as weights, or download it into the cache with "
        f"`hf download {repository} model.safetensors`"
    )


def _read(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file, without running any code in it."""
    from timm.models import load_state_dict

    if not path.is_file():
        raise FileNotFoundError(f"weights={path}: the file does not exist")
    try:
        state: dict[str, Tensor] = load_state_dict(str(path), weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise ValueError(f"weights={path}: damaged, or not only plain tensors ({error})") from error
    return state


def _load_weights(trunk: nn.Module, state: Mapping[str, Tensor], full_name: str, path: Path) -> None:
    """Load all weights. Raises ValueError if they do not fit."""
    own = trunk.state_dict()
    # Older files have no batch counters, which only training needs
    state = {key: value for key, value in own.items() if key.endswith(".num_batches_tracked")} | dict(state)
    differing = {
        "missing": sorted(own.keys() - state.keys()),
        "unexpected": sorted(state.keys() - own.keys()),
        "misshapen": sorted(key for key in own.keys() & state.keys() if own[key].shape != state[key].shape),
    }
    problems = [
        f"{len(keys)} {kind} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for kind, keys in differing.items()
        if keys
    ]
    if problems:
        raise ValueError(f"weights={path} are not those of {PREFIX}{full_name}: {'; '.join(problems)}")
    trunk.load_state_dict(state)
