"""Measure the memory per rank of ViT-B/32, whole and in shards: `python -m tests.perf.training.shards`.

Local gloo ranks take two steps of a few samples. The storages of all live tensors of a process are counted: weights,
gradients and moments. They are counted after the second step and at the peak of a step, when graphs are freed and the
gradients of all ranks are about to be summed.
"""

from __future__ import annotations

import argparse
import gc
import json
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from pipeline.model.config import model_config
from pipeline.model.objectives.clip import CLIP
from pipeline.train.config import TrainConfig
from pipeline.train.network.sharding import shard
from pipeline.train.optimizer.optimizer import make_optimizer, optimizer_step
from pipeline.train.step.gradients import Batch, set_gradients
from tests.gloo import run_ranks

MODEL = "ViT-B/32"
SETTINGS = ((1, False), (2, False), (2, True), (4, True))
"""The number of ranks, and whether weights are sharded."""
SAMPLES = 2


def num_bytes(network: CLIP) -> int:
    """Bytes of this process's tensors. Gradients are added because gc does not list them before their first use."""
    bytes_by_storage = {}
    gradients = [p.grad for p in network.parameters()]
    for candidate in [*gc.get_objects(), *gradients]:
        if issubclass(type(candidate), Tensor) and not issubclass(type(candidate), DTensor):
            storage = candidate.untyped_storage()
            bytes_by_storage[storage.data_ptr()] = storage.nbytes()
    return sum(bytes_by_storage.values())


def measure(rank: int, num_ranks: int, in_shards: bool) -> dict[str, float]:
    """GiB of this rank after the second step and at the peak of a step."""
    if num_ranks > 1:
        dist.init_process_group("gloo", rank=rank, world_size=num_ranks)
    config = model_config(MODEL)
    torch.manual_seed(0)
    network = CLIP(config).train()
    if in_shards:
        shard(network)
    optimizer = make_optimizer(network, TrainConfig())
    peaks: list[int] = []
    all_reduce = dist.all_reduce

    def watched(*arguments: Any, **options: Any) -> Any:
        peaks.append(num_bytes(network))
        return all_reduce(*arguments, **options)

    dist.all_reduce = watched
    tokens = torch.full((SAMPLES, config.text.context_length), config.text.vocab_size - 1)
    side = config.image.image_size
    batch = Batch(torch.zeros(SAMPLES, 3, side, side, dtype=torch.uint8), tokens, torch.full((SAMPLES,), 2))
    for _ in range(2):
        set_gradients(network, batch, chunk_size=SAMPLES, bf16=False)
        optimizer_step(network, optimizer, 1e-4)
    after = num_bytes(network)
    return {"after": after / 2**30, "peak": max([after, *peaks]) / 2**30}


def main() -> None:
    """Measure every setting, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rank", nargs="*", type=int)
    options = parser.parse_args()
    if options.rank:
        rank, num_ranks, in_shards = options.rank
        print(json.dumps(measure(rank, num_ranks, bool(in_shards))))
        return
    print(f"| {MODEL} | GiB per rank between steps | ratio to one rank | GiB at a step's peak | ratio to one rank |")
    print("|---|---:|---:|---:|---:|")
    single_rank = None
    for num_ranks, in_shards in SETTINGS:
        printed = run_ranks("tests.perf.training.shards", num_ranks, [num_ranks, int(in_shards)])
        by_rank = [json.loads(line) for line in printed]
        largest = {name: max(measured[name] for measured in by_rank) for name in by_rank[0]}
        single_rank = single_rank or largest
        cells = " | ".join(f"{largest[name]:.2f} | {largest[name] / single_rank[name]:.2f}" for name in largest)
        label = f"{num_ranks} rank{'s' * (num_ranks > 1)}, {'in shards' if in_shards else 'whole'}"
        print(f"| {label} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
