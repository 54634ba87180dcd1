"""CLIP from the open web to the results table, on Ray."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

__version__ = "0.1.0"

if TYPE_CHECKING:  # torch is slow to import, and most of the package does without
    from PIL import Image
    from torch import Tensor

    from pipeline.model.objectives.clip import CLIP


def load(
    name_or_path: str | Path, weights: str | Path | None = None, device: str = "cpu"
) -> tuple[CLIP, Callable[[Image.Image], Tensor], Callable[[str | list[str]], Tensor]]:
    """A model, ready for use, and what prepares its inputs; the calls are those of OpenAI's `clip`.

    Args:
        name_or_path: a name of the table of models ("ViT-B/32", "RN50x4", ...), which without `weights` gives the
            paper's initial values, drawn from torch's generator; or the place of a trained one: a folder that
            `jobs.pretrain` wrote (its output/model), a folder of open_clip or of transformers' CLIPModel, a file of
            weights (safetensors, what `torch.save` wrote, OpenAI's own archive). A name that begins with "timm/" is an
            image model of others (pipeline/model/encoders/baselines.py), with `encode_image` alone.
        weights: with a name: the place of that model's weights.
        device: where the model runs.

    Returns:
        `model`, with `encode_image`, `encode_text` and `model(image, text) -> (logits_per_image, logits_per_text)`;
        `preprocess`: PIL image -> float32 3 x S x S, normalised;
        `tokenize`: one text or several -> int64 B x context length; of the released vocabulary unless the model has
        its own.

    Raises:
        FileNotFoundError: nothing is at that place.
        ValueError: the name is unknown, a file is damaged or holds a program, or the weights are those of another
            model, or of one that is no CLIP, for it was trained with another objective.
    """
    from pipeline.model.encoders import baselines
    from pipeline.model.images.preprocess import preprocess_for
    from pipeline.model.objectives.clip import CLIP
    from pipeline.model.weights.loading import load_model

    if str(name_or_path).startswith(baselines.PREFIX) and not Path(name_or_path).is_dir():
        baseline, prepare = baselines.load_baseline(str(name_or_path), weights, device)
        return cast(CLIP, baseline), prepare, baselines.no_text(str(name_or_path))
    model = load_model(name_or_path, weights)
    network, config = model.network, model.network.config
    if not isinstance(network, CLIP):
        raise ValueError(f"{name_or_path} was trained with the objective {config.objective}: it is no CLIP")
    return network.to(device).eval(), preprocess_for(config.image.image_size), model.tokenizer
