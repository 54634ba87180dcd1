"""open_clip beside us: the same network, its optimizer as its main program makes it, its epoch."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from pipeline.model.objectives.clip import CLIP
from pipeline.model.weights.foreign_folders import open_clip_config
from pipeline.train.config import TrainConfig


def network_like(network: CLIP) -> nn.Module:
    """open_clip's of the same sizes, with initial values of its own."""
    from open_clip import model as open_clip_model

    peer: nn.Module = open_clip_model.CLIP(**open_clip_config(network)["model_cfg"], output_dict=True)
    return peer


def optimizer_of(peer: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW with the recipe's rate; what has fewer than two dimensions does not decay."""
    parameters = list(peer.parameters())
    groups = [
        {"params": [p for p in parameters if (p.ndim < 2) == small], "weight_decay": decay}
        for small, decay in ((True, 0.0), (False, config.weight_decay))
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=config.epsilon)


def train_epoch(
    peer: nn.Module, loader: Any, loss: Callable[..., Any], optimizer: torch.optim.Optimizer, *,
    epoch: int = 0, scheduler: Callable[[int], None] | None = None, batch_size: int, accum_freq: int = 1,
) -> None:  # fmt: skip
    """open_clip's `train_one_epoch` in bfloat16 on the CPU.

    Args:
        peer: of `network_like`.
        loader: of (images, tokens), with `num_batches` and `num_samples`.
        loss: a ClipLoss.
        optimizer: of `optimizer_of`.
        epoch: its number.
        scheduler: sets the rate of a step; unset: it stays.
        batch_size: of the loader.
        accum_freq: batches of a step.
    """
    from open_clip_train.train import train_one_epoch

    arguments = SimpleNamespace(
        device="cpu", precision="amp_bf16", distill=False, accum_freq=accum_freq, skip_scheduler=scheduler is None,
        horovod=False, grad_clip_norm=None, world_size=1, rank=0, local_rank=0, log_local=False,
        log_every_n_steps=1000, batch_size=batch_size, wandb=False,
    )  # fmt: skip
    data = {"train": SimpleNamespace(dataloader=loader, set_epoch=lambda _epoch: None)}
    train_one_epoch(peer, data, loss, epoch, optimizer, None, scheduler, None, arguments)
