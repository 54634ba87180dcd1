"""A model's weights in the style of another tool, or another tool's in ours.

`python -m jobs.convert --model runs/pretrain/model --style open_clip --output exported`
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from cluster import storage
from jobs.options.launch import launch
from pipeline.model.objectives.clip import CLIP
from pipeline.model.tokenizer.tokenizer import Tokenizer
from pipeline.model.weights import foreign_folders, model_folder
from pipeline.model.weights.loading import read_model
from pipeline.model.weights.parameter_names import Style

logger = logging.getLogger("clip")


@dataclass(frozen=True, kw_only=True)
class ConvertJob:
    """Read, check, write."""

    model: str
    """Local folder or file: of jobs.pretrain (its output/model), of open_clip, of transformers' CLIPModel, or weights
    alone (.safetensors, .pt, .bin; OpenAI's archives)."""
    output: str
    """Folder for the files, local or s3://."""
    style: Style = "ours"
    """ours: as jobs.pretrain writes a model; openai: weights under the released code's names; open_clip: a folder that
    its create_model('local-dir:...') opens; huggingface: one that CLIPModel.from_pretrained opens."""
    name: str | None = None
    """Name in the table of models (pipeline/model/config.py), such as ViT-B/32; unset: told from the weights."""


def main(job: ConvertJob) -> None:
    """Read the model and write it anew."""
    model = read_model(job.model, job.name)
    if job.style == "ours":
        files = model_folder.to_files(model)
    else:
        if not isinstance(model.network, CLIP):
            raise ValueError(f"model={job.model} is no CLIP: style={job.style} has no names for it")
        files = foreign_folders.to_files(model.network, job.style)
        text = model.network.config.text
        if model.tokenizer.to_json() != Tokenizer.released(text.vocab_size, text.context_length).to_json():
            files[model_folder.TOKENIZER_FILE] = model.tokenizer.to_json().encode()
            logger.warning(
                "the model has a vocabulary of its own, kept as %s: readers of style=%s take the released one unless "
                "they are told",
                model_folder.TOKENIZER_FILE,
                job.style,
            )
    for name, data in files.items():
        storage.write_bytes(storage.join(job.output, name), data)
        logger.info("%s: %.1f MB", storage.join(job.output, name), len(data) / 1e6)


if __name__ == "__main__":
    launch(ConvertJob, main)
