"""Convert a model to the format of another tool, or another tool's model to this project's format.

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
    """Read a model in any known format, check it, and write it in another one."""

    model: str
    """Local model: a folder from jobs.pretrain (its output/model), open_clip or transformers' CLIPModel, or a file of
    weights (.safetensors, .pt, .bin, or OpenAI's archives)."""
    output: str
    """Folder for the converted files, local or s3://."""
    style: Style = "ours"
    """ours: the format of jobs.pretrain. openai: weights with the parameter names of OpenAI's code. open_clip: a folder
    for open_clip's create_model('local-dir:...'). huggingface: a folder for CLIPModel.from_pretrained."""
    name: str | None = None
    """Name of the architecture in pipeline/model/config.py, such as ViT-B/32. Unset: detected from the weights."""


def main(job: ConvertJob) -> None:
    """Read the model and write it in the requested format."""
    model = read_model(job.model, job.name)
    if job.style == "ours":
        files = model_folder.to_files(model)
    else:
        if not isinstance(model.network, CLIP):
            raise ValueError(f"model={job.model} is not a CLIP model: style={job.style} has no parameter names for it")
        files = foreign_folders.to_files(model.network, job.style)
        text = model.network.config.text
        if model.tokenizer.to_json() != Tokenizer.released(text.vocab_size, text.context_length).to_json():
            files[model_folder.TOKENIZER_FILE] = model.tokenizer.to_json().encode()
            logger.warning(
                "the model has its own vocabulary, written as %s; tools that read style=%s use OpenAI's vocabulary "
                "unless you give them this file",
                model_folder.TOKENIZER_FILE,
                job.style,
            )
    for name, data in files.items():
        storage.write_bytes(storage.join(job.output, name), data)
        logger.info("%s: %.1f MB", storage.join(job.output, name), len(data) / 1e6)


if __name__ == "__main__":
    launch(ConvertJob, main)
