"""open_clip as the peer of measurements: the same network, its main program's optimizer, and its training epoch."""

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
    """open_clip's network of the same sizes, with open_clip's initial values."""
    from open_clip import model as open_clip_model

    peer: nn.Module = open_clip_model.CLIP(**open_clip_config(network)["model_cfg"], output_dict=True)
    return peer


def optimizer_of(peer: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW with the recipe's learning rate; parameters of fewer than two dimensions have no weight decay."""
    parameters = list(peer.parameters())
    groups = [
        {"params": [p for p in parameters if (p.ndim < 2) == is_vector], "weight_decay": decay}
        for is_vector, decay in ((True, 0.0), (False, config.weight_decay))
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=config.epsilon)


def train_epoch(
    peer: nn.Module, loader: Any, loss: Callable[..., Any], optimizer: torch.optim.Optimizer, *,
    epoch: int = 0, scheduler: Callable[[int], None] | None = None, batch_size: int, accum_freq: int = 1,
) -> None:  # fmt: skip
    """Run open_clip's `train_one_epoch` in bfloat16 on the CPU.

    Args:
        peer: network from `network_like`.
        loader: yields (images, tokens); has `num_batches` and `num_samples`.
        loss: a ClipLoss.
        optimizer: optimizer from `optimizer_of`.
        epoch: number of the epoch.
        scheduler: sets the learning rate of a step; if unset, the rate is constant.
        batch_size: batch size of the loader.
        accum_freq: batches per step.
    """
    from open_clip_train.train import train_one_epoch

    arguments = SimpleNamespace(
        device="cpu", precision="amp_bf16", distill=False, accum_freq=accum_freq, skip_scheduler=scheduler is None,
        horovod=False, grad_clip_norm=None, world_size=1, rank=0, local_rank=0, log_local=False,
        log_every_n_steps=1000, batch_size=batch_size, wandb=False,
    )  # fmt: skip
    data = {"train": SimpleNamespace(dataloader=loader, set_epoch=lambda _epoch: None)}
    train_one_epoch(peer, data, loss, epoch, optimizer, None, scheduler, None, arguments)
