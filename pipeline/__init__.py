"""CLIP from the open web to the results table, on Ray."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:  # torch is slow to import, and most of the package does without
    from PIL import Image
    from torch import Tensor

    from pipeline.model.clip import CLIP


def load(
    name_or_path: str | Path, weights: str | Path | None = None, device: str = "cpu"
) -> tuple[CLIP, Callable[[Image.Image], Tensor], Callable[[str | list[str]], Tensor]]:
    """A trained model, ready for use, and what prepares its inputs; the calls are those of OpenAI's `clip`.

    Args:
        name_or_path: a folder that `jobs.pretrain` wrote (its output/model), or a name of the table of models.
        weights: with a name: the folder that holds the weights of that model.
        device: where the model runs.

    Returns:
        `model`, with `encode_image`, `encode_text` and `model(image, text) -> (logits_per_image, logits_per_text)`;
        `preprocess`: PIL image -> float32 3 x S x S, normalised;
        `tokenize`: one text or several -> int64 B x context length.

    Raises:
        FileNotFoundError: there is no model in that folder.
        ValueError: the name is unknown, the files are damaged, or the weights are those of another model.
    """
    from dataclasses import replace

    from pipeline.model import model_folder
    from pipeline.model.config import MODELS, model_config
    from pipeline.model.preprocess import preprocess_for

    if weights is None and str(name_or_path) in MODELS and not Path(name_or_path).is_dir():
        raise ValueError(f"load('{name_or_path}') needs weights=FOLDER: this project comes without weights")
    model = model_folder.load(name_or_path if weights is None else weights)
    config = model.network.config
    if weights is not None:
        wanted = model_config(str(name_or_path))
        text = replace(wanted.text, vocab_size=config.text.vocab_size)
        if replace(wanted, text=text) != config:
            raise ValueError(f"weights={weights} are not those of the model '{name_or_path}'")
    return model.network.to(device).eval(), preprocess_for(config.image.image_size), model.tokenizer
