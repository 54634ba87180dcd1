"""What a rank holds of ViT-B/32, whole and in shards: `python -m tests.perf.training.shards`.

Gloo ranks of this machine take two steps of a few samples. Counted are the storages of all tensors that are alive in a
process, so weights, gradients and moments: after the second step, and at its height, when the gradients of all ranks
are about to be summed and the graphs are gone.
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
"""Ranks, and whether weights are in shards."""
SAMPLES = 2


def num_bytes(network: CLIP) -> int:
    """Of this process' tensors; gradients are added, which Python does not know before somebody asks for them."""
    found = {}
    gradients = [p.grad for p in network.parameters()]
    for thing in [*gc.get_objects(), *gradients]:
        if issubclass(type(thing), Tensor) and not issubclass(type(thing), DTensor):
            storage = thing.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def measure(rank: int, num_ranks: int, in_shards: bool) -> dict[str, float]:
    """GiB of this rank after the second step and at its height."""
    if num_ranks > 1:
        dist.init_process_group("gloo", rank=rank, world_size=num_ranks)
    config = model_config(MODEL)
    torch.manual_seed(0)
    network = CLIP(config).train()
    if in_shards:
        shard(network)
    optimizer = make_optimizer(network, TrainConfig())
    heights: list[int] = []
    all_reduce = dist.all_reduce

    def watched(*arguments: Any, **options: Any) -> Any:
        heights.append(num_bytes(network))
        return all_reduce(*arguments, **options)

    dist.all_reduce = watched
    tokens = torch.full((SAMPLES, config.text.context_length), config.text.vocab_size - 1)
    side = config.image.image_size
    batch = Batch(torch.zeros(SAMPLES, 3, side, side, dtype=torch.uint8), tokens, torch.full((SAMPLES,), 2))
    for _ in range(2):
        set_gradients(network, batch, chunk_size=SAMPLES, bf16=False)
        optimizer_step(network, optimizer, 1e-4)
    after = num_bytes(network)
    return {"after": after / 2**30, "height": max([after, *heights]) / 2**30}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rank", nargs="*", type=int)
    options = parser.parse_args()
    if options.rank:
        rank, num_ranks, in_shards = options.rank
        print(json.dumps(measure(rank, num_ranks, bool(in_shards))))
        return
    print(f"| {MODEL} | GiB of a rank between steps | of one rank's | at a step's height | of one rank's |")
    print("|---|---:|---:|---:|---:|")
    alone = None
    for num_ranks, in_shards in SETTINGS:
        printed = run_ranks("tests.perf.training.shards", num_ranks, [num_ranks, int(in_shards)])
        found = [json.loads(one) for one in printed]
        most = {name: max(one[name] for one in found) for name in found[0]}
        alone = alone or most
        cells = " | ".join(f"{most[name]:.2f} | {most[name] / alone[name]:.2f}" for name in most)
        label = f"{num_ranks} rank{'s' * (num_ranks > 1)}, {'in shards' if in_shards else 'whole'}"
        print(f"| {label} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
