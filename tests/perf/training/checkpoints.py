"""Measure the cost of a checkpoint: `python -m tests.perf.training.checkpoints [--model ViT-B/32]` prints a table.

Training pauses while the state is copied. A thread then writes the copy to a local disk, reads it back and compares it.
The second time is that of all these steps: how long training would pause if checkpoints were written synchronously.
"""

from __future__ import annotations

import argparse
import tempfile
import time

import torch

from cluster import storage
from pipeline.model.config import model_config
from pipeline.model.objectives.clip import CLIP
from pipeline.model.tokenizer.tokenizer import Tokenizer
from pipeline.model.weights.model_folder import Model
from pipeline.train.checkpoints.background_saver import BackgroundSaver
from pipeline.train.checkpoints.checkpoint import Checkpoint, CheckpointFolder, Progress
from pipeline.train.config import TrainConfig
from pipeline.train.optimizer.optimizer import make_optimizer

ROUNDS = 3


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="ViT-B/32")
    name = parser.parse_args().model
    config = model_config(name)
    network = CLIP(config)
    optimizer = make_optimizer(network, TrainConfig())
    for p in network.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    network.zero_grad(set_to_none=True)
    model = Model(network, Tokenizer.released(config.text.vocab_size, config.text.context_length))
    pauses, writes = [], []
    with tempfile.TemporaryDirectory() as folder:
        saver = BackgroundSaver(CheckpointFolder(folder, storage, keep=1))
        for step in range(ROUNDS):
            began = time.perf_counter()
            saver.begin(Checkpoint(model, optimizer.state_dict(), Progress(step, 0.0)))
            pauses.append(time.perf_counter() - began)
            saved = saver.wait()
            writes.append(time.perf_counter() - began)
        assert saved is not None
        num_bytes = sum(map(len, saved.files.values()))
    print("| model | GB | training pauses, s | written and read back after, s |\n|---|---:|---:|---:|")
    print(f"| {name} | {num_bytes / 1e9:.2f} | {min(pauses):.2f} | {min(writes):.2f} |")


if __name__ == "__main__":
    main()
