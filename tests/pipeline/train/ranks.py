"""Training steps on four gloo processes of this machine, run as `python -m tests.pipeline.train.ranks`.

They take every case, one after the other, in groups of as many as the case has shares.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.model.clip import CLIP
from pipeline.model.config import ImageTowerConfig, Objective
from pipeline.model.image import normalise
from pipeline.model.objectives import Network, network_for
from pipeline.train import gradients
from pipeline.train.activations import Budget
from pipeline.train.chunks import Chunks
from pipeline.train.gradients import Batch, StepResult, set_gradients
from tests.pipeline.model.models import CONFIG, small_batch

TIMEOUT_SECONDS = 120
WORLD_SIZE = 4
TOWERS = {
    "convnext": replace(CONFIG.image, options={**CONFIG.image.options, "drop_rate": 0.0}),
    "transformer": ImageTowerConfig(
        architecture="vit_tiny_patch16_224",
        image_size=32,
        options={"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2},
    ),
    "resnet": ImageTowerConfig(
        architecture="resnet18",
        image_size=32,
        options={"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16], "stem_width": 8},
    ),
}
"""The last has batch norms."""


class Case(NamedTuple):
    """A step of one kind."""

    shares: tuple[int, ...]
    """Rows of each rank."""
    chunk_size: int
    tower: str = "convnext"
    objective: Objective = "contrastive"
    dtype: torch.dtype = torch.float64
    budget_bytes: int = 0
    norm_group_size: int | None = None
    lacking_rank: int | None = None
    """It runs out of memory on its first way back."""
    poisoned: int | None = None
    """The rank whose texts are embedded as something that is not finite."""


CASES = (
    *(Case(shares, 2) for shares in ((12,), (6, 6), (1, 4, 7), (5, 4, 2, 1))),
    *(Case((5, 7), chunk_size) for chunk_size in (1, 3, 100)),
    *(Case((5, 7), 3, "transformer", dtype=dtype) for dtype in (torch.float64, torch.float32)),
    Case((5, 7), 2, "transformer", budget_bytes=10**9),
    *(Case(shares, 5, "resnet", norm_group_size=4) for shares in ((12,), (8, 4), (4, 4, 4))),
    Case((8, 4), 5, "resnet", "caption", norm_group_size=4),
    *(Case((8, 4), 3, objective=objective) for objective in ("bag", "caption")),
    Case((5, 7), 3, "transformer", lacking_rank=1),
    Case((5, 7), 3, objective="caption", lacking_rank=0),
    Case((8, 4), 5, "resnet", norm_group_size=4, poisoned=1),
)


def network_of(case: Case) -> Network:
    """Always the same, in training mode."""
    torch.manual_seed(0)
    config = replace(CONFIG, objective=case.objective, image=TOWERS[case.tower])
    return network_for(config).to(case.dtype).train()


def take_step(case: Case, network: Network, rank: int, group: dist.ProcessGroup | None) -> StepResult:
    """This rank's part of it."""
    start = sum(case.shares[:rank])
    share = Batch(*(part[start : start + case.shares[rank]] for part in small_batch(sum(case.shares))))
    if rank == case.poisoned:
        assert isinstance(network, CLIP)
        network.text_tower.register_forward_hook(lambda _tower, _inputs, features: features * torch.inf)
    budget = Budget(case.budget_bytes)
    if case.lacking_rank is not None:
        chunks = Chunks(case.chunk_size, case.budget_bytes, norm_group_size=None, bf16=False)
        with out_of_memory_once() if case.lacking_rank == rank else nullcontext():
            return chunks.set_gradients(network, share, group)
    for _ in range(2 if case.budget_bytes else 1):  # the first step measures what the second one keeps
        result = set_gradients(
            network, share, chunk_size=case.chunk_size, bf16=False, norm_group_size=case.norm_group_size,
            budget=budget, group=group,
        )  # fmt: skip
    return result


@contextmanager
def out_of_memory_once() -> Iterator[None]:
    """The first backward pass fails."""
    backward = Tensor.backward

    def fails(_tensor: Tensor, *_arguments: Tensor) -> None:
        Tensor.backward = backward  # type: ignore[method-assign]
        raise torch.OutOfMemoryError("no room")

    Tensor.backward = fails  # type: ignore[method-assign]
    yield


def state_after(network: Network) -> Iterator[tuple[str, Tensor]]:
    """Gradients, and the statistics of batch norms."""
    yield from ((name, p.grad) for name, p in network.named_parameters() if p.grad is not None)
    yield from network.named_buffers()


def run_ranks(folder: Path) -> list[list[dict[str, Tensor]]]:
    """What each rank ended with, in each case; nothing where it took no part."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, "-m", __name__, str(rank), str(folder)], env=environment)
        for rank in range(WORLD_SIZE)
    ]
    assert [process.wait(TIMEOUT_SECONDS) for process in processes] == [0] * WORLD_SIZE
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD_SIZE)]


def _normalise_to(dtype: torch.dtype) -> None:
    gradients.normalise = lambda images: normalise(images).to(dtype)  # type: ignore[attr-defined]


def _main(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", rank=rank, world_size=WORLD_SIZE)
    groups = [cast(dist.ProcessGroup, dist.new_group(list(range(size + 1)))) for size in range(WORLD_SIZE)]
    found: list[dict[str, Tensor]] = []
    for case in CASES:
        found.append({})
        if rank < len(case.shares):
            _normalise_to(case.dtype)
            network = network_of(case)
            result = take_step(case, network, rank, groups[len(case.shares) - 1])
            found[-1] |= dict(state_after(network))
            found[-1]["loss"] = torch.tensor(result.loss, dtype=torch.float64)
            if result.accuracy_image_to_text is not None:
                accuracies = (result.accuracy_image_to_text, result.accuracy_text_to_image)
                found[-1]["accuracies"] = torch.tensor(accuracies)
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    _main(int(sys.argv[1]), Path(sys.argv[2]))
