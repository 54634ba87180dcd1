"""Write models in the formats of other tools: open_clip, transformers' CLIPModel and OpenAI's code.

The first two are folders with a file of weights and a configuration file. OpenAI's style is a file of weights only.
"""

from __future__ import annotations

import json
from typing import Any

import safetensors.torch
from torch import Tensor, nn

from pipeline.model.objectives.clip import CLIP
from pipeline.model.weights.convert import export_state
from pipeline.model.weights.parameter_names import Style

CONFIG_FILES = ("open_clip_config.json", "config.json")
WEIGHTS_FILES = (
    *("open_clip_model.safetensors", "model.safetensors"),
    *("open_clip_pytorch_model.bin", "pytorch_model.bin"),
)
"""Names that the weights can have in a folder of another tool."""


def to_files(network: CLIP, style: Style) -> dict[str, bytes]:
    """The content of a model's files in a style, by name.

    Raises:
        ValueError: the style cannot represent this model.
    """
    state = {name: tensor.cpu().contiguous() for name, tensor in export_state(network, style).items()}
    # transformers requires the name of the framework
    weights = safetensors.torch.save(state, metadata={"format": "pt"})
    if style == "huggingface":
        return {"model.safetensors": weights, "config.json": _json(huggingface_config(network))}
    if style == "open_clip":
        return {"open_clip_model.safetensors": weights, "open_clip_config.json": _json(open_clip_config(network))}
    return {"model.safetensors": weights}


def huggingface_config(network: CLIP) -> dict[str, Any]:
    """The configuration for transformers' CLIPModel. The image tower must be a vision transformer."""
    text, image = network.config.text, network.config.image
    blocks, width, patch_size = _transformer(network)
    shared = {"projection_dim": network.config.embed_dim, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": network.config.embed_dim,
        "text_config": {
            **shared,
            "model_type": "clip_text_model",
            "hidden_size": text.width,
            "intermediate_size": 4 * text.width,
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "max_position_embeddings": text.context_length,
            "vocab_size": text.vocab_size,
            "bos_token_id": text.vocab_size - 2,
            "eos_token_id": text.vocab_size - 1,
            "pad_token_id": 0,
        },
        "vision_config": {
            **shared,
            "model_type": "clip_vision_model",
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": len(blocks),
            "num_attention_heads": blocks[0].attn.num_heads,
            "image_size": image.image_size,
            "patch_size": patch_size,
        },
    }


def open_clip_config(network: CLIP) -> dict[str, Any]:
    """The configuration that open_clip reads beside the weights."""
    text, image = network.config.text, network.config.image
    state = network.image_tower.trunk.state_dict()
    vision: dict[str, Any] = {"image_size": image.image_size}
    if "cls_token" in state:
        blocks, width, patch_size = _transformer(network)
        head_width = blocks[0].attn.head_dim
        vision |= {"layers": len(blocks), "width": width, "patch_size": patch_size, "head_width": head_width}
    else:
        stages: Any = network.image_tower.trunk.stages
        vision |= {"layers": [len(stage) for stage in stages], "width": len(state["stem.conv3.conv.weight"])}
        vision |= {"patch_size": None}
    towers = {
        "embed_dim": network.config.embed_dim,
        "quick_gelu": True,
        "vision_cfg": vision,
        "text_cfg": {
            "context_length": text.context_length,
            "vocab_size": text.vocab_size,
            "width": text.width,
            "heads": text.heads,
            "layers": text.layers,
        },
    }
    return {"model_cfg": towers}


def _transformer(network: CLIP) -> tuple[Any, int, int]:
    """The blocks, width and patch size of a vision transformer."""
    patches: Tensor = network.image_tower.trunk.get_parameter("patch_embed.proj.weight")
    blocks: nn.Module = network.image_tower.trunk.get_submodule("blocks")
    return blocks, patches.shape[0], patches.shape[-1]


def _json(values: dict[str, Any]) -> bytes:
    return json.dumps(values, indent=1).encode()
