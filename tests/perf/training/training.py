"""Compare a training step with open_clip's gradient accumulation: `python -m tests.perf.training.training`.

Needs CLIP_DATA. Both sides use the same model, weights, images and real captions, bf16 and all cores. Ours uses
gradient caching and chunks of captions of similar length; open_clip uses its `train_one_epoch` with accum_freq. The
variants take turns, each in a separate process. The table has the fastest step after the first, and the peak memory of
the process beyond the memory in use before the first step. With `--ablation`, one part of our step is removed at a
time.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from torch import Tensor

from pipeline.model.config import model_config
from pipeline.model.objectives.clip import CLIP
from pipeline.model.tokenizer.tokenizer import Tokenizer
from pipeline.model.towers.activation import QuickGELU
from pipeline.model.towers.image_tower import normalise
from pipeline.model.weights.convert import export_state
from pipeline.train.config import TrainConfig
from pipeline.train.optimizer.optimizer import gradient_norm, make_optimizer, optimizer_step
from pipeline.train.step import gradients
from pipeline.train.step.gradients import Batch, set_gradients
from pipeline.train.step.graph_budget import Budget
from tests.perf.peer import network_like, optimizer_of, train_epoch

DATA = Path(os.environ.get("CLIP_DATA", "../shared/data"))
NUM_STEPS = 3
WARM_UP = 1
RATE = 1e-4
SETTINGS = (("small", 512, 64, (0.0, 1.5, 16.0)), ("ViT-B/32", 128, 32, (0.0, 16.0)))
"""Model, batch size, chunk size, and budgets for kept graphs in GiB."""
ABLATION = ("captions padded to 77", "torch's attention", "autograd's QuickGELU", "no graph kept at all")
Step = Callable[[], float]


class AutogradQuickGELU(torch.nn.Module):
    """QuickGELU by plain autograd, which saves all intermediate results."""

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the same shape and dtype."""
        return x * torch.sigmoid(1.702 * x)


class NoKeptGraphs(Budget):
    """Keeps no graph at all, so that every chunk is embedded twice."""

    def first_kept(self, _tower: str, chunks: Sequence[Tensor]) -> int:
        """The number of chunks: no chunk keeps its graph."""
        return len(chunks)


def ours_without(part: str, network: CLIP, batch: Batch, chunk_size: int) -> Step:
    """Our step without one of the parts of ABLATION."""
    budget = Budget(0)
    if part == "captions padded to 77":
        batch = replace(batch, lengths=torch.full_like(batch.lengths, batch.tokens.shape[1]))
    elif part == "torch's attention":
        gradients.PlainAttention = nullcontext  # type: ignore[attr-defined, assignment]
    elif part == "autograd's QuickGELU":
        for module in list(network.modules()):
            for name, child in module.named_children():
                if isinstance(child, QuickGELU):
                    setattr(module, name, AutogradQuickGELU())
    else:
        budget = NoKeptGraphs(0)
    return our_step(network, batch, chunk_size, budget)


def batch_of(model: str, num_rows: int) -> Batch:
    """A batch of random pixels and the first real captions."""
    config = model_config(model)
    generator = torch.Generator().manual_seed(0)
    side = config.image.image_size
    images = torch.randint(0, 256, (num_rows, 3, side, side), dtype=torch.uint8, generator=generator)
    captions = pq.read_table(DATA / "captions.parquet", columns=["text"])["text"].slice(0, num_rows).to_pylist()
    tokenizer = Tokenizer.released(config.text.vocab_size, config.text.context_length)
    _, lengths = tokenizer.encode(captions)
    return Batch(images, tokenizer(captions), lengths)


def our_step(network: CLIP, batch: Batch, chunk_size: int, budget: Budget) -> Step:
    """A step as in the training loop: gradients, then optimizer."""
    optimizer = make_optimizer(network, TrainConfig(learning_rate=RATE))

    def step() -> float:
        result = set_gradients(network, batch, chunk_size=chunk_size, bf16=True, budget=budget)
        optimizer_step(network, optimizer, RATE, norm=gradient_norm(network))
        return result.loss

    return step


def their_step(network: CLIP, batch: Batch, chunk_size: int) -> Step:
    """A one-step epoch of open_clip's training, from the same weights."""
    from open_clip.loss import ClipLoss

    peer = network_like(network)
    peer.load_state_dict(export_state(network, "open_clip"))
    optimizer = optimizer_of(peer, TrainConfig(learning_rate=RATE))
    pixels = normalise(batch.images)
    chunks = list(zip(pixels.split(chunk_size), batch.tokens.split(chunk_size), strict=True))  # type: ignore[no-untyped-call]

    class Loader(list[tuple[Tensor, Tensor]]):
        num_batches, num_samples = len(chunks), len(pixels)

    loader = Loader(chunks)
    loss: Any = ClipLoss()
    last: list[Tensor] = []

    def watched(**features: Any) -> Any:
        losses = loss(**features)
        last[:] = [losses["contrastive_loss"].detach()]
        return losses

    def step() -> float:
        train_epoch(peer, loader, watched, optimizer, batch_size=chunk_size, accum_freq=len(chunks))
        return last[0].item()

    return step


def measure(model: str, num_rows: int, chunk_size: int, name: str) -> dict[str, float]:
    """Samples per second, GiB, and the loss of the first step."""
    batch = batch_of(model, num_rows)
    torch.manual_seed(0)
    network = CLIP(model_config(model)).train()
    if name == "open_clip":
        step = their_step(network, batch, chunk_size)
    elif name in ABLATION:
        step = ours_without(name, network, batch, chunk_size)
    else:
        step = our_step(network, batch, chunk_size, Budget(int(float(name) * 2**30)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds, losses = [], []
    for _ in range(NUM_STEPS):
        began = time.perf_counter()
        losses.append(step())
        seconds.append(time.perf_counter() - began)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    return {"rate": num_rows / min(seconds[WARM_UP:]), "gib": peak, "loss": losses[0]}


def main() -> None:
    """Measure every variant in its own process, and print a table per setting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=[model for model, *_ in SETTINGS])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--ablation", action="store_true")
    parser.add_argument("--one", nargs=4)
    options = parser.parse_args()
    if options.one:
        model, num_rows, chunk_size, name = options.one
        print(json.dumps(measure(model, int(num_rows), int(chunk_size), name)))
        return
    for model, num_rows, chunk_size, budgets in SETTINGS:
        if model not in options.models:
            continue
        names = ("open_clip", *(("0.0", *ABLATION) if options.ablation else map(str, budgets)))
        best: dict[str, dict[str, float]] = {name: {"rate": 0.0} for name in names}
        for _ in range(options.rounds):
            for name in names:
                arguments = ["--one", model, str(num_rows), str(chunk_size), name]
                command = [sys.executable, "-m", "tests.perf.training.training", *arguments]
                found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                best[name] = max(best[name], found, key=lambda measured: measured["rate"])
        peer = best["open_clip"]
        print(f"\n| {model}, {num_rows} in chunks of {chunk_size} | samples/s | ratio | GiB | first loss |")
        print("|---|---:|---:|---:|---:|")
        for name, found in best.items():
            label = f"ours, {float(name):g} GiB for kept graphs" if name[0].isdigit() else name
            cells = (
                f"{found['rate']:.1f} | {found['rate'] / peer['rate']:.2f} | {found['gib']:.2f} | {found['loss']:.4f}"
            )
            print(f"| {label} | {cells} |", flush=True)
            assert math.isclose(found["loss"], peer["loss"], rel_tol=2e-3), "both sides must compute the same loss"


if __name__ == "__main__":
    main()
