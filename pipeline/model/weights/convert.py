"""Weights of others into a model of ours and back: OpenAI's names, open_clip's, and those of transformers' CLIPModel.

What does not fit is refused as a whole, with a list of what is missing, what is unexpected and what has another shape.
Only an image tower's positions are made to fit, because the paper itself goes on from 224 to 336 pixels with them.
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
"""Of batch norms, which do without it: the paper's models keep running means of fixed momentum."""


def import_state(model: Network, state: Mapping[str, Tensor]) -> None:
    """Set a model's weights, whichever of the styles of parameter_names.py they are in, and whatever floating type
    they have.

    Position embeddings of an image tower are interpolated if they are of another resolution. A model on the meta device
    takes the tensors as they are, without a copy where the style allows.

    Raises:
        ValueError: a weight is missing, unexpected or of another shape; the model stays as it was.
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
    """A model's weights under the names of a style, detached; like those of `state_dict()` they may share its memory.

    Raises:
        ValueError: the style has no names for the model's towers, or its readers would take it for another model.
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


def recognise(state: Mapping[str, Tensor]) -> str:
    """The name of the model in the table to which these weights belong, by their names and shapes.

    Raises:
        ValueError: to none.
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
            plain = {key: t.shape for key, t in theirs.items() if not is_extra(key, style)}
            if _without_counters(plain) == _without_counters(shapes):
                return name
    raise ValueError(f"the weights (style {style}) are those of no model in the table: {', '.join(MODELS)}")


def empty_clip(config: ModelConfig) -> CLIP:
    """A model on the meta device, for `import_state` to fill: quick, because no initial value is computed."""
    model = empty_network(config)
    assert isinstance(model, CLIP)
    return model


def _plain_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what training in several processes, and open_clip's models with exchangeable text towers, prepend."""
    plain = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    has_text_prefix = "text.token_embedding.weight" in plain and any(name.startswith("visual.") for name in plain)
    return {name.removeprefix("text.") if has_text_prefix else name: tensor for name, tensor in plain.items()}


def _interpolate(positions: Tensor, shape: torch.Size) -> Tensor:
    """Positions [1 x] N x D of a square grid, one without a place before them, for a grid of another size."""
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


def _refuse_misfits(expected: Mapping[str, torch.Size], found: Mapping[str, Tensor], style: Style) -> None:
    misshapen = [
        f"{name} {list(found[name].shape)} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name].shape != shape
    ]
    lists = (
        ("missing", [name for name in expected if name not in found]),
        ("unexpected", [name for name in found if name not in expected]),
        ("misshapen", misshapen),
    )
    if any(names for _, names in lists):
        said = "; ".join(f"{len(names)} {kind} ({_shortened(names)})" for kind, names in lists if names)
        raise ValueError(f"the weights (style {style}) are not those of this model: {said}")


def _shortened(names: list[str]) -> str:
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return ", ".join(names[:_MAX_LISTED]) + more


def _without_counters(shapes: Mapping[str, torch.Size]) -> dict[str, torch.Size]:
    return {name: shape for name, shape in shapes.items() if not name.endswith(_COUNTER)}


def _refuse_heads(model: CLIP) -> None:
    """OpenAI's readers take a transformer's number of heads from its width."""
    text = model.config.text
    blocks: Collection[object] = getattr(model.image_tower.trunk, "blocks", ())
    widths = {block.attn.head_dim for block in blocks} | {text.width // text.heads}  # type: ignore[attr-defined]
    if widths != {64}:
        raise ValueError(f"style=openai knows heads of 64 dimensions only; this model has {sorted(widths)}")
