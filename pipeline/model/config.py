"""Define the configuration of a CLIP, and the table of named models."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from typing import Any, Literal, get_args

from pipeline import paper

Objective = Literal["contrastive", "contrastive-bag", "bag", "caption"]
"""What a model learns to predict from its pairs (figure 2).

"contrastive" and "contrastive-bag" predict which text belongs to which image, reading the text with a transformer or as
a bag of words. "bag" predicts the words of the caption, "caption" the caption itself. The networks are in
pipeline/model/objectives/networks.py."""
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)


@dataclass(frozen=True, kw_only=True)
class ImageTowerConfig:
    """An image tower of timm, without its classification head."""

    architecture: str
    """Name in timm's registry."""
    image_size: int
    """Side of the square input in pixels."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of timm's constructor. They are plain data, so that they can be saved beside the weights."""
    weight_standardisation: bool = False
    """Whether convolutions standardise their kernels (Qiao et al. 2019), for architectures that take a
    `conv_layer`. With group norms, such a network learns about as fast as one with batch norms."""


@dataclass(frozen=True, kw_only=True)
class TextTowerConfig:
    """A causal transformer over byte-pair tokens."""

    width: int
    heads: int
    layers: int
    context_length: int = paper.CONTEXT_LENGTH.value
    vocab_size: int = paper.VOCAB_SIZE.value
    """Entries of the vocabulary, the two special tokens included. A trained tokenizer may have fewer; its number
    then replaces this one."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A CLIP: two towers, each projected linearly into one space of `embed_dim` dimensions (section 2.3)."""

    embed_dim: int
    image: ImageTowerConfig
    text: TextTowerConfig
    objective: Objective = "contrastive"

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain data, readable by `from_dict`. Leaves out the default objective, "contrastive"."""
        values = asdict(self)
        if self.objective == "contrastive":
            del values["objective"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelConfig":
        """The configuration that `to_dict` wrote.

        Raises:
            ValueError: a key is missing or unknown, a size is no positive whole number, or the objective is unknown.
        """
        try:
            if unknown := sorted(values.keys() - cls.__dataclass_fields__.keys()):
                raise TypeError(f"unknown keys {unknown}")
            image, text = ImageTowerConfig(**values["image"]), TextTowerConfig(**values["text"])
            config = cls(
                embed_dim=values["embed_dim"], image=image, text=text, objective=values.get("objective", "contrastive")
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a valid model configuration: {error}") from error
        sizes = {"embed_dim": config.embed_dim, "image_size": image.image_size} | asdict(text)
        for name, size in sizes.items():
            if type(size) is not int or size < 1:
                raise ValueError(f"not a valid model configuration: {name} = {size!r} must be a positive whole number")
        if config.objective not in OBJECTIVES:
            raise ValueError(f"the objective '{config.objective}' is not one of {', '.join(OBJECTIVES)}")
        return config


PAPER_ARCHITECTURES: Mapping[str, str] = {
    "RN50": "resnet50_clip",
    "RN101": "resnet101_clip",
    "RN50x4": "resnet50x4_clip",
    "RN50x16": "resnet50x16_clip",
    "RN50x64": "resnet50x64_clip",
    "ViT-B/32": "vit_base_patch32_clip_quickgelu_224",
    "ViT-B/16": "vit_base_patch16_clip_quickgelu_224",
    "ViT-L/14": "vit_large_patch14_clip_quickgelu_224",
    "ViT-L/14@336px": "vit_large_patch14_clip_quickgelu_336",
}
"""timm's name for the image tower of each model of the paper."""


def _paper_model(name: str) -> ModelConfig:
    sizes = paper.MODEL_SIZES[name].value
    return ModelConfig(
        embed_dim=sizes.embed_dim,
        image=ImageTowerConfig(architecture=PAPER_ARCHITECTURES[name], image_size=sizes.image_size),
        text=TextTowerConfig(width=sizes.text_width, heads=sizes.text_heads, layers=paper.TEXT_LAYERS.value),
    )


MODELS: Mapping[str, ModelConfig] = {
    **{name: _paper_model(name) for name in paper.MODEL_SIZES},
    # A vision transformer for a laptop: both towers have eight layers of width 256
    "small": ModelConfig(
        embed_dim=256,
        image=ImageTowerConfig(
            architecture="vit_base_patch16_clip_quickgelu_224",
            image_size=128,
            options={"img_size": 128, "embed_dim": 256, "depth": 8, "num_heads": 4},
        ),
        text=TextTowerConfig(width=256, heads=4, layers=8),
    ),
    # A pre-activation ResNet of four blocks. Its group norms keep the samples of a chunk independent of each other
    "tiny": ModelConfig(
        embed_dim=128,
        image=ImageTowerConfig(
            architecture="resnetv2_50d_gn",
            image_size=64,
            options={
                "layers": [1, 1, 1, 1],
                "channels": [32, 64, 128, 256],
                "basic": True,
                "bottle_ratio": 1.0,
                "stem_chs": 32,
                "stem_type": "",
                "avg_down": False,
            },
            weight_standardisation=True,
        ),
        text=TextTowerConfig(width=128, heads=2, layers=2, context_length=32, vocab_size=1024),
    ),
}
"""Models by name."""


def model_config(name: str) -> ModelConfig:
    """The configuration of the model with this name.

    Raises:
        ValueError: no model has this name. The message suggests similar names and lists all models.
    """
    if name not in MODELS:
        similar = nearest_names(name)
        advice = f"did you mean {' or '.join(similar)}? The models are " if similar else "choose one of "
        raise ValueError(f"model={name} is not known; {advice}{', '.join(MODELS)}")
    return MODELS[name]


def nearest_names(name: str) -> list[str]:
    """Up to three names of models that are spelled like this name, the most similar first."""
    by_spelling = {_letters_and_digits(known): known for known in MODELS}
    return [by_spelling[match] for match in get_close_matches(_letters_and_digits(name), by_spelling, cutoff=0.7)]


def _letters_and_digits(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))
