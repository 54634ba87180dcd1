"""Measure a training step with compiled and with checkpointed blocks: `python -m tests.perf.training.compiling`.

Needs CLIP_DATA. Takes the step of tests/perf/training/training.py in bf16 on one core, with one process per setting.
Rates use the CPU seconds of the median step after a first pass over three batches with different captions. All
compilation happens in that first pass. The compiler starts with an empty cache.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import torch
import torch._dynamo

from pipeline.model.config import model_config
from pipeline.model.objectives.clip import CLIP
from pipeline.train.config import TrainConfig
from pipeline.train.network.compiled_blocks import LENGTH_MULTIPLE
from pipeline.train.network.prepare import prepare
from pipeline.train.optimizer.optimizer import make_optimizer, optimizer_step
from pipeline.train.step.gradients import Batch, set_gradients
from pipeline.train.step.graph_budget import Budget
from tests.perf.training.training import RATE, batch_of

MODEL, NUM_ROWS, CHUNK_SIZE = "small", 512, 64
NUM_BATCHES = 3
NUM_STEPS = 5
SETTINGS = {
    "plain": TrainConfig(),
    "compiled": TrainConfig(compile=True),
    "checkpointed": TrainConfig(checkpoint_activations=True),
    "both": TrainConfig(compile=True, checkpoint_activations=True),
}


def measure(name: str, budget_gib: float) -> dict[str, float]:
    """Samples per CPU second, extra seconds of the first pass, GiB, compiled graphs, and loss of the first step."""
    config = SETTINGS[name]
    torch.set_num_threads(1)
    all_rows = batch_of(MODEL, NUM_BATCHES * NUM_ROWS)
    batches = [
        Batch(*(part[start : start + NUM_ROWS] for part in (all_rows.images, all_rows.tokens, all_rows.lengths)))
        for start in range(0, NUM_BATCHES * NUM_ROWS, NUM_ROWS)
    ]
    torch.manual_seed(0)
    network = CLIP(model_config(MODEL)).train()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    prepare(network, config)
    optimizer = make_optimizer(network, TrainConfig(learning_rate=RATE))
    budget = Budget(int(budget_gib * 2**30))
    seconds, losses = [], []
    for number in range(NUM_BATCHES + NUM_STEPS):
        began = time.process_time()
        result = set_gradients(
            network, batches[number % NUM_BATCHES], chunk_size=CHUNK_SIZE, bf16=True,
            length_multiple=LENGTH_MULTIPLE if config.compile else 1, budget=budget,
        )  # fmt: skip
        optimizer_step(network, optimizer, RATE)
        seconds.append(time.process_time() - began)
        losses.append(result.loss)
    return {
        "rate": NUM_ROWS / statistics.median(seconds[NUM_BATCHES:]),
        "first": sum(seconds[:NUM_BATCHES]) - NUM_BATCHES * statistics.median(seconds[NUM_BATCHES:]),
        "gib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20,
        "graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"],
        "loss": losses[0],
    }


def main() -> None:
    """Measure every setting in its own process, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=2)
    parser.add_argument("--budget", default="0", help="GiB for kept graphs")
    options = parser.parse_args()
    if options.one:
        name, budget_gib = options.one
        print(json.dumps(measure(name, float(budget_gib))))
        return
    measured: dict[str, dict[str, float]] = {}
    for name in SETTINGS:
        with tempfile.TemporaryDirectory() as cache:
            command = [sys.executable, "-m", "tests.perf.training.compiling", "--one", name, options.budget]
            environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache}
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
        measured[name] = json.loads(output)
    print(
        f"| {MODEL}, {NUM_ROWS} in chunks of {CHUNK_SIZE}, {options.budget} GiB for kept graphs "
        "| samples per CPU second | ratio | GiB | compiling, CPU seconds | graphs compiled | first loss |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, values in measured.items():
        ratio = values["rate"] / measured["plain"]["rate"]
        print(
            f"| {name} | {values['rate']:.1f} | {ratio:.2f} | {values['gib']:.2f} | {values['first']:.0f} | "
            f"{values['graphs']:.0f} | {values['loss']:.4f} |"
        )


if __name__ == "__main__":
    main()
