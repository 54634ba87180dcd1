"""Measure optimizer steps and memory: `python -m tests.perf.training.optimizers [--model ViT-B/32] [--device cuda]`.

Compares torch's fused AdamW in float32 with our Adam, whose moments, and optionally weights of the text tower, are in
bfloat16. Each variant updates all weights of a model, in a separate process, in turns. The table has the fastest step
after the first, the memory held between steps, and the additional peak memory of a step. With `--curves 600`, the
script instead compares the losses of bfloat16 and float32 over 600 steps.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from typing import get_args
from unittest.mock import patch

import torch

from pipeline.model.config import model_config
from pipeline.model.weights.convert import empty_clip
from pipeline.train.config import StoredPrecision, TrainConfig
from pipeline.train.network.bf16_text_weights import halve_text_weights
from pipeline.train.optimizer import bf16_adam
from pipeline.train.optimizer.optimizer import make_optimizer
from tests.pipeline.train.learning import losses

NUM_STEPS = 6
ROUNDS = 2
VARIANTS: tuple[tuple[StoredPrecision, StoredPrecision], ...] = (("fp32", "fp32"), ("bf16", "fp32"), ("bf16", "bf16"))
"""Precision of the moments and of the text weights."""


def measure(model: str, moments: StoredPrecision, text_weights: StoredPrecision, device: str) -> dict[str, float]:
    """Milliseconds of a step, and MiB of moments, weights and additional peak memory."""
    config = TrainConfig(moments=moments, text_weights=text_weights)
    network = empty_clip(model_config(model)).to_empty(device=device)
    for p in network.parameters():
        p.data.fill_(0.02)
    if text_weights == "bf16":
        halve_text_weights(network)
    optimizer = make_optimizer(network, config)
    for p in network.parameters():
        p.grad = torch.full(p.shape, 1e-4, device=device)
    before = _peak_mib(device)
    optimizer.step()
    seconds = []
    for _ in range(NUM_STEPS):
        began = time.perf_counter()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    weights = sum(p.numel() * p.element_size() for p in network.parameters())
    state = sum(
        value.numel() * value.element_size()
        for moments_of_weight in optimizer.state.values()
        for value in moments_of_weight.values()
    )
    return {
        "milliseconds": 1000 * min(seconds),
        "state": state / 2**20,
        "weights": weights / 2**20,
        "step_peak": _peak_mib(device) - before - state / 2**20,
    }


def curves(num_steps: int) -> None:
    """Print how losses differ from those in float32, for three seeds of a small network that memorises pairs."""
    config = TrainConfig(learning_rate=3e-3, warmup_steps=20, beta2=0.999, global_batch_size=16)
    round_to_nearest = patch.object(bf16_adam, "random_bits", _one_half)
    print("| moments | text weights | rounded | largest difference | mean difference | mean difference, last tenth |")
    print("|---|---|---|---:|---:|---:|")
    plain = torch.tensor([losses(config, num_steps, seed) for seed in range(3)])
    for moments, text_weights in VARIANTS[1:]:
        for rounding in ("stochastically", "to the nearest"):
            with round_to_nearest if rounding == "to the nearest" else nullcontext():
                half = replace(config, moments=moments, text_weights=text_weights)
                half_losses = torch.tensor([losses(half, num_steps, seed) for seed in range(3)])
            differences = half_losses - plain
            last = differences[:, -num_steps // 10 :]
            figures = f"{differences.abs().max():.4f} | {differences.mean():+.5f} | {last.mean():+.5f}"
            print(f"| {moments} | {text_weights} | {rounding} | {figures} |", flush=True)
    print(f"float32: from {plain[:, 0].mean():.3f} to {plain[:, -num_steps // 10 :].mean():.4f}")


def _one_half(_index: int, _stream: int, _first: int, num_elements: int, device: torch.device) -> torch.Tensor:
    return torch.full((num_elements,), 2**15, dtype=torch.int32, device=device)


def _peak_mib(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure every variant in its own process, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="ViT-B/32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--one", nargs=2, choices=get_args(StoredPrecision))
    parser.add_argument("--curves", type=int)
    options = parser.parse_args()
    if options.curves:
        curves(options.curves)
        return
    if options.one:
        moments, text_weights = options.one
        print(json.dumps(measure(options.model, moments, text_weights, options.device)))
        return
    best: dict[tuple[StoredPrecision, StoredPrecision], dict[str, float]] = {}
    for _ in range(ROUNDS):
        for variant in VARIANTS:
            arguments = ["--model", options.model, "--device", options.device, "--one", *variant]
            command = [sys.executable, "-m", "tests.perf.training.optimizers", *arguments]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            best[variant] = min(best.get(variant, found), found, key=lambda measured: measured["milliseconds"])
    print("| moments | text weights | ms per step | moments, MiB | weights, MiB | additional peak of a step, MiB |")
    print("|---|---|---:|---:|---:|---:|")
    for (moments, text_weights), measured in best.items():
        figures = (measured["milliseconds"], measured["state"], measured["weights"], measured["step_peak"])
        print(f"| {moments} | {text_weights} | {' | '.join(f'{figure:,.0f}' for figure in figures)} |")


if __name__ == "__main__":
    main()
