"""A model for the tests of the evaluation."""

from dataclasses import replace
from pathlib import Path

import torch

from pipeline.model import model_folder
from pipeline.model.clip import CLIP
from pipeline.model.config import model_config
from pipeline.model.tokenizer import Tokenizer
from tests.pipeline.eval.pictures import PAIRS


def save_small_model(folder: Path) -> None:
    """The tiny model with random weights, always the same."""
    config = model_config("tiny")
    captions = [text for pair in PAIRS for text in pair]
    tokenizer = Tokenizer.train(captions, config.text.vocab_size, config.text.context_length)
    config = replace(config, text=replace(config.text, vocab_size=tokenizer.vocab_size))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = CLIP(config)
    model_folder.save(model_folder.Model(network, tokenizer), folder)
