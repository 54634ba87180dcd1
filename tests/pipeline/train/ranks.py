"""A training step on several gloo processes of this machine, run as `python -m tests.pipeline.train.ranks`."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist

from pipeline.model.config import Objective
from pipeline.model.image import normalise
from pipeline.model.objectives import Network, network_for
from pipeline.train import gradients
from pipeline.train.grad_cache import Batch
from pipeline.train.gradients import set_gradients
from tests.pipeline.model.models import CONFIG, small_batch, small_clip

TIMEOUT_SECONDS = 120


def double_network(objective: Objective) -> Network:
    """A small one in float64, always the same, without dropout."""
    torch.manual_seed(0)
    return network_for(replace(CONFIG, objective=objective)).double().eval()


def step_on_ranks(
    sizes: list[int], chunk_size: int, folder: Path, objectives: Sequence[Objective] = ("contrastive",)
) -> list[dict[str, torch.Tensor]]:
    """For each objective the gradients, and `loss`, of a step that so many processes with so many samples each take
    together, in float64 but for a CLIP.

    Raises AssertionError unless all of them end with the same.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shares = ",".join(map(str, sizes))
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", __name__, str(rank), shares, str(chunk_size), str(folder), *objectives],
            env=os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(len(sizes))
    ]
    assert [process.wait(TIMEOUT_SECONDS) for process in processes] == [0] * len(sizes)
    found = []
    for objective in objectives:
        first, *others = (
            torch.load(folder / f"{objective}-{rank}.pt", weights_only=True) for rank in range(len(sizes))
        )
        for other in others:
            assert other.keys() == first.keys()
            assert all(torch.equal(other[name], first[name]) for name in first)
        found.append(first)
    return found


def _main(rank: int, sizes: list[int], chunk_size: int, folder: Path, objectives: Sequence[str]) -> None:
    dist.init_process_group("gloo", rank=rank, world_size=len(sizes))
    start = sum(sizes[:rank])
    images, tokens, lengths = (part[start : start + sizes[rank]] for part in small_batch(sum(sizes)))
    for objective in objectives:
        if objective == "contrastive":
            network: Network = small_clip().eval()  # no dropout: its draws are each rank's own
        else:
            network = double_network(cast(Objective, objective))
            gradients.normalise = lambda images: normalise(images).double()  # type: ignore[attr-defined]
        result = set_gradients(
            network, Batch(images, tokens, lengths),
            chunk_size=chunk_size, num_workers=len(sizes), bf16=False,
        )  # fmt: skip
        found = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
        found["loss"] = torch.tensor(result.loss, dtype=torch.float64)
        if result.accuracy_image_to_text is not None:
            found["accuracies"] = torch.tensor([result.accuracy_image_to_text, result.accuracy_text_to_image])
        torch.save(found, folder / f"{objective}-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    _rank, _sizes, _chunk_size, _folder, *_objectives = sys.argv[1:]
    _main(int(_rank), [int(size) for size in _sizes.split(",")], int(_chunk_size), Path(_folder), _objectives)
