"""Translate the names of a CLIP's parameters between this project and other code.

There are four styles of names. `ours` is this project's. `openai` is the released code's, which also stores three
numbers beside the weights; `open_clip` is the same without them. `huggingface` is the CLIPModel of transformers, which
has separate queries, keys and values, and transposes both projections. Each style has exactly one rule for every
parameter; no parameter is ignored.

Shapes: N positions, D width, E joint embedding.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

Style = Literal["ours", "openai", "open_clip", "huggingface"]
STYLES: tuple[Style, ...] = get_args(Style)

_CLS, _POSITIONS = "image_tower.trunk.cls_token", "image_tower.trunk.pos_embed"
_IMAGE_PROJECTION, _TEXT_PROJECTION = "image_tower.projection.weight", "text_tower.projection.weight"

Rule = tuple[str, str | Callable[[re.Match[str]], str]]

_QKV = "[qkv]"
"""Placeholder in a foreign name that stands for three parameters: queries, keys and values."""


def _openai_convolution(match: re.Match[str]) -> str:
    stage, block, number, kind, field = match.groups()
    return f"visual.layer{int(stage) + 1}.{block}.{kind}{number}.{field}"


def _openai_shortcut(match: re.Match[str]) -> str:
    stage, block, kind, field = match.groups()
    return f"visual.layer{int(stage) + 1}.{block}.downsample.{'0' if kind == 'conv' else '1'}.{field}"


# The layers of a block, as patterns for our text tower or timm, then OpenAI's and Hugging Face's names
_LAYERS = (
    *(r"attention_norm|norm1", r"attention_in|attn\.qkv", r"attention_out|attn\.proj"),
    *(r"mlp_norm|norm2", r"mlp_in|mlp\.fc1", r"mlp_out|mlp\.fc2"),
)
_OPENAI_LAYERS = ("ln_1.", "attn.in_proj_", "attn.out_proj.", "ln_2.", "mlp.c_fc.", "mlp.c_proj.")
_HUGGINGFACE_LAYERS = (
    *("layer_norm1.", f"self_attn.{_QKV}_proj.", "self_attn.out_proj."),
    *("layer_norm2.", "mlp.fc1.", "mlp.fc2."),
)


def _blocks(ours: str, theirs: str, layers: tuple[str, ...]) -> list[Rule]:
    return [
        (rf"{ours}\.(\d+)\.(?:{layer})\.(weight|bias)", rf"{theirs}.\1.{name}\2")
        for layer, name in zip(_LAYERS, layers, strict=True)
    ]


_OPENAI: tuple[Rule, ...] = (
    (r"logit_scale", "logit_scale"),
    (r"text_tower\.token_embedding\.weight", "token_embedding.weight"),
    (r"text_tower\.position_embedding", "positional_embedding"),
    (r"text_tower\.final_norm\.(weight|bias)", r"ln_final.\1"),
    (r"text_tower\.projection\.weight", "text_projection"),
    *_blocks(r"text_tower\.blocks", "transformer.resblocks", _OPENAI_LAYERS),
)
_OPENAI_TRANSFORMER: tuple[Rule, ...] = (
    (r"image_tower\.trunk\.cls_token", "visual.class_embedding"),
    (r"image_tower\.trunk\.pos_embed", "visual.positional_embedding"),
    (r"image_tower\.trunk\.patch_embed\.proj\.weight", "visual.conv1.weight"),
    (r"image_tower\.trunk\.norm_pre\.(weight|bias)", r"visual.ln_pre.\1"),
    (r"image_tower\.trunk\.norm\.(weight|bias)", r"visual.ln_post.\1"),
    (r"image_tower\.projection\.weight", "visual.proj"),
    *_blocks(r"image_tower\.trunk\.blocks", "visual.transformer.resblocks", _OPENAI_LAYERS),
)
_OPENAI_RESNET: tuple[Rule, ...] = (
    (r"image_tower\.trunk\.stem\.conv(\d)\.(conv|bn)\.(\w+)", r"visual.\2\1.\3"),
    (r"image_tower\.trunk\.stages\.(\d+)\.(\d+)\.conv(\d)_\w+\.(conv|bn)\.(\w+)", _openai_convolution),
    (r"image_tower\.trunk\.stages\.(\d+)\.(\d+)\.shortcut\.conv\.(conv|bn)\.(\w+)", _openai_shortcut),
    (r"image_tower\.trunk\.head\.pos_embed", "visual.attnpool.positional_embedding"),
    (r"image_tower\.trunk\.head\.([qkv])\.(weight|bias)", r"visual.attnpool.\1_proj.\2"),
    (r"image_tower\.projection\.(weight|bias)", r"visual.attnpool.c_proj.\1"),
)
_HUGGINGFACE: tuple[Rule, ...] = (
    (r"logit_scale", "logit_scale"),
    (r"text_tower\.token_embedding\.weight", "text_model.embeddings.token_embedding.weight"),
    (r"text_tower\.position_embedding", "text_model.embeddings.position_embedding.weight"),
    (r"text_tower\.final_norm\.(weight|bias)", r"text_model.final_layer_norm.\1"),
    (r"text_tower\.projection\.weight", "text_projection.weight"),
    *_blocks(r"text_tower\.blocks", "text_model.encoder.layers", _HUGGINGFACE_LAYERS),
    (r"image_tower\.trunk\.cls_token", "vision_model.embeddings.class_embedding"),
    (r"image_tower\.trunk\.pos_embed", "vision_model.embeddings.position_embedding.weight"),
    (r"image_tower\.trunk\.patch_embed\.proj\.weight", "vision_model.embeddings.patch_embedding.weight"),
    (r"image_tower\.trunk\.norm_pre\.(weight|bias)", r"vision_model.pre_layrnorm.\1"),
    (r"image_tower\.trunk\.norm\.(weight|bias)", r"vision_model.post_layernorm.\1"),
    (r"image_tower\.projection\.weight", "visual_projection.weight"),
    *_blocks(r"image_tower\.trunk\.blocks", "vision_model.encoder.layers", _HUGGINGFACE_LAYERS),
)
_EXTRAS: Mapping[Style, str] = {
    "ours": r"(?!)",
    "openai": r"input_resolution|context_length|vocab_size|(transformer\.resblocks\.\d+\.)?attn_mask",
    "open_clip": r"attn_mask",
    "huggingface": r"(text|vision)_model\.embeddings\.position_ids",
}
"""Patterns of entries that are not weights: numbers that also follow from the shapes, constant masks, position ids."""


def is_extra(name: str, style: Style) -> bool:
    """Whether an entry of a foreign state is known not to be a weight."""
    return re.fullmatch(_EXTRAS[style], name) is not None


def style_of(names: set[str]) -> Style:
    """The style in which these names are written.

    Raises:
        ValueError: the names are in none of the styles.
    """
    if any(name.startswith(("image_tower.", "text_tower.")) for name in names):
        return "ours"
    if any(name.startswith(("vision_model.", "text_model.")) for name in names):
        return "huggingface"
    if any(name.startswith("visual.") for name in names):
        return "openai" if "input_resolution" in names else "open_clip"
    first_names = ", ".join(sorted(names)[:3]) or "no entries"
    raise ValueError(f"these weights are not those of a CLIP in a known style ({', '.join(STYLES)}): {first_names}")


class Names:
    """Translates the parameters of one model into one style, and back."""

    def __init__(self, ours: Mapping[str, Tensor], style: Style) -> None:
        """Look up the foreign name or names of every parameter.

        Args:
            ours: the state of a model of this project; its tensors may be on the meta device.
            style: the foreign style.

        Raises:
            ValueError: the style has no name for a parameter.
        """
        self.style = style
        is_transformer = _CLS in ours
        self._transposed = {_TEXT_PROJECTION, *([_IMAGE_PROJECTION] if is_transformer else [])}
        if style in ("ours", "huggingface"):
            self._transposed = set()
        images = _OPENAI_TRANSFORMER if is_transformer else _OPENAI_RESNET
        rules = _HUGGINGFACE if style == "huggingface" else (*_OPENAI, *images)
        self.theirs = {name: [name] if style == "ours" else _translate(name, rules) for name in ours}
        if unnamed := [name for name, theirs in self.theirs.items() if not theirs]:
            raise ValueError(
                f"style={style} has no names for this model: {len(unnamed)} of its weights have no counterpart, "
                f"the first of which is {unnamed[0]}"
            )

    def to_theirs(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """Convert a parameter to the foreign style: one tensor by name, or three."""
        theirs = self.theirs[name]
        if self.style != "ours" and name in (_CLS, _POSITIONS):  # 1 x 1 x D, 1 x N x D
            tensor = tensor.squeeze(0).squeeze(0)
        if name in self._transposed:
            tensor = tensor.T.contiguous()
        return dict(zip(theirs, tensor.chunk(len(theirs)) if len(theirs) > 1 else [tensor], strict=True))

    def to_ours(self, name: str, tensors: list[Tensor], shape: torch.Size) -> Tensor:
        """Convert a parameter from the foreign style; the order of `tensors` is that of `theirs[name]`."""
        tensor = torch.cat(tensors) if len(tensors) > 1 else tensors[0]
        return (tensor.T.contiguous() if name in self._transposed else tensor).view(shape)


def _translate(name: str, rules: tuple[Rule, ...]) -> list[str]:
    for ours, theirs in rules:
        if match := re.fullmatch(ours, name):
            translated = theirs(match) if callable(theirs) else match.expand(theirs)
            return [translated.replace(_QKV, part) for part in "qkv"] if _QKV in translated else [translated]
    return []
