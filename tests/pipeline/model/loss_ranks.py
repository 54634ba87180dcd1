"""Compute losses in several local gloo processes; started as `python -m tests.pipeline.model.loss_ranks`.

Four processes compute all cases one after the other. A case uses the first 1, 2, 3 or 4 of them as its group.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from pipeline.model.objectives import loss
from tests import gloo

TIMEOUT_SECONDS = 120
BIAS = -1.5
SHARES = ((7,), (4, 3), (6, 1), (2, 3, 2), (1, 5, 1, 4))
"""The rows of each rank, for each case."""


def batch(num_rows: int, dtype: torch.dtype, spread: float) -> tuple[Tensor, Tensor, Tensor]:
    """Image features, similar text features, and the logarithm of the scale."""
    generator = torch.Generator().manual_seed(num_rows)
    images = torch.randn(num_rows, 5, generator=generator, dtype=torch.float64)
    texts = images + spread * torch.randn(num_rows, 5, generator=generator, dtype=torch.float64)
    images, texts = (F.normalize(part, dim=-1).to(dtype).requires_grad_() for part in (images, texts))
    return images, texts, torch.tensor(3.0, dtype=dtype, requires_grad=True)


def cases() -> Iterator[tuple[str, tuple[int, ...], torch.dtype, bool]]:
    """Yield the name, shares, dtype, and whether the loss is the sigmoid loss."""
    for shares in SHARES:
        for dtype in (torch.float32, torch.float64):
            for is_sigmoid in (False, True):
                yield f"{shares} {dtype} {is_sigmoid}", shares, dtype, is_sigmoid


def run_ranks(folder: Path) -> list[dict[str, dict[str, Any]]]:
    """The results of each rank, by the name of the case."""
    gloo.run_ranks(__name__, 4, [folder], TIMEOUT_SECONDS)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(4)]


def _main(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", rank=rank, world_size=4)
    groups = [cast(dist.ProcessGroup, dist.new_group(list(range(size)))) for size in (1, 2, 3, 4)]
    loss.TILE["cpu"] = (3, 4)
    results = {}
    for name, shares, dtype, is_sigmoid in cases():
        if rank >= len(shares):
            continue
        group = None if len(shares) == 4 else groups[len(shares) - 1]
        images, texts, log_scale = batch(sum(shares), dtype, 1.0)
        own_rows = slice(sum(shares[:rank]), sum(shares[: rank + 1]))
        images, texts = (part.detach()[own_rows].requires_grad_() for part in (images, texts))
        bias = torch.tensor(BIAS, dtype=dtype, requires_grad=True) if is_sigmoid else None
        leaves = (images, texts, log_scale)
        if bias is None:
            value = loss.contrastive_loss(*leaves, group=group)
        else:
            value = loss.sigmoid_loss(*leaves, bias, group=group)
        result = loss.loss_gradients(*leaves, bias, group)
        results[name] = {
            "loss": value.detach(),
            "gradients": torch.autograd.grad(value, leaves if bias is None else (*leaves, bias)),
            "accuracies": torch.tensor([result.accuracy_image_to_text, result.accuracy_text_to_image]),
        }
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    _main(int(sys.argv[1]), Path(sys.argv[2]))
