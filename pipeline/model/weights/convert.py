"""Convert weights between this project and OpenAI's code, open_clip and transformers' CLIPModel.

Weights that do not fit the model are refused as a whole. The error lists missing and unexpected weights, and those of a
different shape. Only the position embeddings of an image tower are resized to fit, as the paper does when it goes from
224 to 336 pixels.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.model.config import MODELS, ModelConfig
from pipeline.model.objectives.clip import CLIP
from pipeline.model.objectives.networks import Network, empty_network
from pipeline.model.weights.parameter_names import Names, Style, is_extra, style_of

_MAX_LISTED = 5
_POSITIONS = ("image_tower.trunk.pos_embed", "image_tower.trunk.head.pos_embed")
_COUNTER = ".num_batches_tracked"
"""Suffix of batch counters. Batch norms with a fixed momentum, as in the paper's models, do not need their value."""


def import_state(model: Network, state: Mapping[str, Tensor]) -> None:
    """Set a model's weights from a state in any style of parameter_names.py and of any floating-point type.

    Position embeddings of an image tower are interpolated if they belong to another resolution. A model on the meta
    device takes the tensors over without copying them, if the style allows.

    Raises:
        ValueError: a weight is missing, unexpected or of another shape. The model is then unchanged.
    """
    state = _plain_names(state)
    style = style_of(set(state))
    ours = model.state_dict()
    names = Names(ours, style)
    expected = {
        theirs: part.shape
        for name, tensor in ours.items()
        for theirs, part in names.to_theirs(name, tensor.to("meta")).items()
    }
    fitted = {name: tensor for name, tensor in state.items() if not is_extra(name, style)}
    for name in (theirs for own in _POSITIONS for theirs in names.theirs.get(own, ())):
        if name in fitted:
            fitted[name] = _interpolate(fitted[name], expected[name])
    for name in expected:
        if name.endswith(_COUNTER):
            fitted.setdefault(name, torch.zeros((), dtype=torch.int64))
    _refuse_misfits(expected, fitted, style)
    new = {
        name: names.to_ours(name, [fitted[part] for part in names.theirs[name]], old.shape).to(old.dtype)
        for name, old in ours.items()
    }
    model.load_state_dict(new, assign=any(tensor.is_meta for tensor in ours.values()))


def export_state(model: CLIP, style: Style) -> dict[str, Tensor]:
    """A model's weights under the names of a style, detached. They may share the model's memory, as in `state_dict()`.

    Raises:
        ValueError: the style has no names for the model's towers, or its readers would misinterpret the model.
    """
    state = model.state_dict()
    names = Names(state, style)
    exported = {
        theirs: part.clone() if len(names.theirs[name]) > 1 else part
        for name, tensor in state.items()
        for theirs, part in names.to_theirs(name, tensor).items()
    }
    if style == "openai":
        _refuse_heads(model)
        config = model.config
        numbers = (config.image.image_size, config.text.context_length, config.text.vocab_size)
        keys = ("input_resolution", "context_length", "vocab_size")
        exported |= {key: torch.tensor(number) for key, number in zip(keys, numbers, strict=True)}
    return exported


def recognise_model(state: Mapping[str, Tensor]) -> str:
    """The name of the model in the table to which these weights belong, judged by their names and shapes.

    Raises:
        ValueError: no model in the table has such weights.
    """
    state = _plain_names(state)
    style = style_of(set(state))
    shapes = {name: tensor.shape for name, tensor in state.items() if not is_extra(name, style)}
    for name, config in MODELS.items():
        if torch.Size((config.text.vocab_size, config.text.width)) in shapes.values():
            try:
                theirs = export_state(empty_clip(config), style)
            except ValueError:  # this style has no names for that model
                continue
            expected = {key: tensor.shape for key, tensor in theirs.items() if not is_extra(key, style)}
            if _without_counters(expected) == _without_counters(shapes):
                return name
    raise ValueError(f"the weights (style {style}) do not belong to any model in the table: {', '.join(MODELS)}")


def empty_clip(config: ModelConfig) -> CLIP:
    """A model on the meta device, ready for `import_state`. It is quick to build: no initial values are computed."""
    model = empty_network(config)
    assert isinstance(model, CLIP)
    return model


def _plain_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefixes of distributed training ("module.") and of open_clip's custom text towers ("text.")."""
    plain = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    has_text_prefix = "text.token_embedding.weight" in plain and any(name.startswith("visual.") for name in plain)
    return {name.removeprefix("text.") if has_text_prefix else name: tensor for name, tensor in plain.items()}


def _interpolate(positions: Tensor, shape: torch.Size) -> Tensor:
    """Resize the positions of a square grid, [1 x] N x D, to another grid. The first position is outside the grid."""
    grid, new = _grid(positions.shape), _grid(shape)
    if grid is None or new is None or grid == new or positions.shape[-1] != shape[-1]:
        return positions
    width = shape[-1]
    rows = positions.float().reshape(-1, width)
    picture = rows[1:].T.reshape(1, width, grid, grid)
    resized = F.interpolate(picture, size=(new, new), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([rows[:1], resized.reshape(width, -1).T]).reshape(shape)


def _grid(shape: torch.Size) -> int | None:
    if len(shape) < 2:
        return None
    side = math.isqrt(shape[-2] - 1)
    return side if side * side == shape[-2] - 1 else None


def _refuse_misfits(expected: Mapping[str, torch.Size], given: Mapping[str, Tensor], style: Style) -> None:
    misshapen = [
        f"{name} {list(given[name].shape)} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in given and given[name].shape != shape
    ]
    lists = (
        ("missing", [name for name in expected if name not in given]),
        ("unexpected", [name for name in given if name not in expected]),
        ("misshapen", misshapen),
    )
    if any(names for _, names in lists):
        problems = "; ".join(f"{len(names)} {kind} ({_shortened(names)})" for kind, names in lists if names)
        raise ValueError(f"the weights (style {style}) are not those of this model: {problems}")


def _shortened(names: list[str]) -> str:
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return ", ".join(names[:_MAX_LISTED]) + more


def _without_counters(shapes: Mapping[str, torch.Size]) -> dict[str, torch.Size]:
    return {name: shape for name, shape in shapes.items() if not name.endswith(_COUNTER)}


def _refuse_heads(model: CLIP) -> None:
    """Refuse heads not of width 64, because OpenAI's readers derive the number of heads from the width."""
    text = model.config.text
    blocks: Collection[object] = getattr(model.image_tower.trunk, "blocks", ())
    widths = {block.attn.head_dim for block in blocks} | {text.width // text.heads}  # type: ignore[attr-defined]
    if widths != {64}:
        raise ValueError(f"style=openai supports only heads of 64 dimensions; this model's heads have {sorted(widths)}")
