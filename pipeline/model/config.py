"""The table of models: what makes one CLIP different from another."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline import paper


@dataclass(frozen=True, kw_only=True)
class ImageTowerConfig:
    """An image tower of timm, without its classification head."""

    architecture: str
    """Name in timm's registry."""
    image_size: int
    """Side of the square input in pixels."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of timm's constructor; plain data, so that it can be saved beside the weights."""
    weight_standardisation: bool = False
    """Convolutions standardise their kernels (Qiao et al. 2019), in architectures that take a `conv_layer`; with group
    norms this learns about as fast as batch norms do."""


@dataclass(frozen=True, kw_only=True)
class TextTowerConfig:
    """A causal transformer over byte-pair tokens."""

    width: int
    heads: int
    layers: int
    context_length: int = paper.CONTEXT_LENGTH.value
    vocab_size: int = paper.VOCAB_SIZE.value
    """Entries of the vocabulary, the two special tokens included; the tokenizer has the last word."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A CLIP: two towers, each projected linearly into one space of `embed_dim` dimensions (section 2.3)."""

    embed_dim: int
    image: ImageTowerConfig
    text: TextTowerConfig

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain data; `from_dict` reads it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelConfig":
        """The configuration that `to_dict` wrote.

        Raises:
            ValueError: a key is missing or unknown.
        """
        try:
            image, text = ImageTowerConfig(**values["image"]), TextTowerConfig(**values["text"])
            return cls(embed_dim=values["embed_dim"], image=image, text=text)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not the configuration of a model: {error}") from error


MODELS: Mapping[str, ModelConfig] = {
    # A pre-activation ResNet of four blocks with group norms, so that no sample depends on another one of its chunk
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
    """The model of that name.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    if name not in MODELS:
        raise ValueError(f"model={name} is not known; choose one of {', '.join(sorted(MODELS))}")
    return MODELS[name]
