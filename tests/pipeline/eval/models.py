"""A small model for the tests of the evaluation."""

from dataclasses import replace
from pathlib import Path

import torch

from pipeline.model.config import Objective, model_config
from pipeline.model.objectives.networks import network_for
from pipeline.model.tokenizer.tokenizer import Tokenizer
from pipeline.model.weights import model_folder
from tests.pipeline.eval.pictures import PAIRS


def save_small_model(folder: Path, objective: Objective = "contrastive") -> None:
    """Save the tiny model with random weights from a fixed seed."""
    config = replace(model_config("tiny"), objective=objective)
    captions = [text for pair in PAIRS for text in pair]
    tokenizer = Tokenizer.train(captions, config.text.vocab_size, config.text.context_length)
    config = replace(config, text=replace(config.text, vocab_size=tokenizer.vocab_size))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = network_for(config)
    model_folder.save(model_folder.Model(network, tokenizer), folder)
