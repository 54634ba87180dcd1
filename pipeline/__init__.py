"""CLIP from the open web to the results table, on Ray."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

__version__ = "0.1.0"

if TYPE_CHECKING:  # torch is slow to import, and most of the package does not need it
    from PIL import Image
    from torch import Tensor

    from pipeline.model.objectives.clip import CLIP


def load(
    name_or_path: str | Path, weights: str | Path | None = None, device: str = "cpu"
) -> tuple[CLIP, Callable[[Image.Image], Tensor], Callable[[str | list[str]], Tensor]]:
    """Load a model with its preprocessing and tokenizer. The interface is that of OpenAI's `clip` package.

    Args:
        name_or_path: the name of a model ("ViT-B/32", "RN50x4", ...) or the path of a trained one. A name without
            `weights` gives the paper's initial values, drawn from torch's generator. A path is a folder that
            `jobs.pretrain` wrote (output/model), a folder of open_clip or of transformers' CLIPModel, or a file of
            weights (safetensors, a file of `torch.save`, OpenAI's archive). A name that begins with "timm/" is a
            third-party image model (pipeline/model/encoders/baselines.py), which has only `encode_image`.
        weights: path of the weights; only with a name.
        device: the device that the model runs on.

    Returns:
        `model`, with `encode_image`, `encode_text` and `model(image, text) -> (logits_per_image, logits_per_text)`;
        `preprocess`: PIL image -> float32 3 x S x S, normalised;
        `tokenize`: one text or several -> int64 B x context length, with the model's own vocabulary if it has one,
        otherwise the released one.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: the name is unknown, a file is damaged or contains code, the weights belong to another model, or
            the model was trained with an objective other than CLIP's.
    """
    from pipeline.model.encoders import baselines
    from pipeline.model.images.preprocess import preprocess_for
    from pipeline.model.objectives.clip import CLIP
    from pipeline.model.weights.loading import load_model

    if str(name_or_path).startswith(baselines.PREFIX) and not Path(name_or_path).is_dir():
        baseline, prepare = baselines.load_baseline(str(name_or_path), weights, device)
        return cast(CLIP, baseline), prepare, baselines.refuse_texts(str(name_or_path))
    model = load_model(name_or_path, weights)
    network, config = model.network, model.network.config
    if not isinstance(network, CLIP):
        raise ValueError(f"{name_or_path} was trained with the objective {config.objective}: it is not a CLIP model")
    return network.to(device).eval(), preprocess_for(config.image.image_size), model.tokenizer
