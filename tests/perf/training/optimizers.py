"""An optimizer's step and its memory: `python -m tests.perf.training.optimizers [--model ViT-B/32] [--device cuda]`;
with
`--curves 600` instead, how far from the losses of float32 it leads.

All weights of a model: torch's fused AdamW in float32, and ours with moments, and weights of the text tower, in
bfloat16. Each in a process of its own, in turns; the fastest of all steps but the first, bytes that are held between
steps, and how much further a step drives the peak.
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
"""Moments and text weights."""


def measure(model: str, moments: StoredPrecision, text_weights: StoredPrecision, device: str) -> dict[str, float]:
    """Milliseconds of a step, and MiB."""
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
    state = sum(value.numel() * value.element_size() for one in optimizer.state.values() for value in one.values())
    return {
        "milliseconds": 1000 * min(seconds),
        "state": state / 2**20,
        "weights": weights / 2**20,
        "beside": _peak_mib(device) - before - state / 2**20,
    }


def curves(num_steps: int) -> None:
    """Print how losses differ from those in float32, over three seeds, a small network and pairs learned by heart."""
    config = TrainConfig(learning_rate=3e-3, warmup_steps=20, beta2=0.999, global_batch_size=16)
    nearest = patch.object(bf16_adam, "random_bits", _one_half)
    print("| moments | text weights | rounded | greatest difference | mean difference | of the last tenth |")
    print("|---|---|---|---:|---:|---:|")
    plain = torch.tensor([losses(config, num_steps, seed) for seed in range(3)])
    for moments, text_weights in VARIANTS[1:]:
        for how in ("stochastically", "to the nearest"):
            with nearest if how == "to the nearest" else nullcontext():
                half = replace(config, moments=moments, text_weights=text_weights)
                found = torch.tensor([losses(half, num_steps, seed) for seed in range(3)])
            away = found - plain
            last = away[:, -num_steps // 10 :]
            figures = f"{away.abs().max():.4f} | {away.mean():+.5f} | {last.mean():+.5f}"
            print(f"| {moments} | {text_weights} | {how} | {figures} |", flush=True)
    print(f"float32: from {plain[:, 0].mean():.3f} to {plain[:, -num_steps // 10 :].mean():.4f}")


def _one_half(_place: int, _stream: int, _first: int, num_elements: int, device: torch.device) -> torch.Tensor:
    return torch.full((num_elements,), 2**15, dtype=torch.int32, device=device)


def _peak_mib(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Print a table."""
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
            best[variant] = min(best.get(variant, found), found, key=lambda one: one["milliseconds"])
    print("| moments | text weights | ms a step | moments, MiB | weights, MiB | a step takes beside, MiB |")
    print("|---|---|---:|---:|---:|---:|")
    for (moments, text_weights), found in best.items():
        figures = (found["milliseconds"], found["state"], found["weights"], found["beside"])
        print(f"| {moments} | {text_weights} | {' | '.join(f'{figure:,.0f}' for figure in figures)} |")


if __name__ == "__main__":
    main()
