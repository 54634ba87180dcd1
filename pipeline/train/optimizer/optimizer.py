"""Optimize with AdamW and a learning rate that warms up and then follows a cosine (section 2.5)."""

import math

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from pipeline.model.objectives.clip import CLIP
from pipeline.model.objectives.networks import Network
from pipeline.train.config import TrainConfig
from pipeline.train.network.sharding import total_norm
from pipeline.train.optimizer.bf16_adam import HalfAdamW


def make_optimizer(model: Network, config: TrainConfig) -> Optimizer:
    """AdamW that decays all weights but gains and biases: torch's, or ours for half precision (bf16_adam.py)."""
    decayed = [p for p in model.parameters() if is_decayed(p)]
    others = [p for p in model.parameters() if not is_decayed(p)]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    rate, betas, epsilon = config.learning_rate, (config.beta1, config.beta2), config.epsilon
    if config.moments == config.text_weights == "fp32":
        return AdamW(groups, lr=rate, betas=betas, eps=epsilon, fused=True)
    moments = torch.bfloat16 if config.moments == "bf16" else torch.float32
    return HalfAdamW(groups, lr=rate, betas=betas, eps=epsilon, moments=moments, seed=config.seed)


def is_decayed(parameter: Tensor) -> bool:
    """Whether weight decay applies: to all weights but scalars and vectors, as in open_clip.

    Scalars and vectors are gains, biases, the logit scale and the class token. timm's class token has additional
    dimensions of size 1, which are ignored.
    """
    return sum(size > 1 for size in parameter.shape) >= 2


def learning_rate(config: TrainConfig, step: int, num_steps: int) -> float:
    """The learning rate of a step, counted from 0: a linear warm-up, then half a cosine down to zero."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, num_steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def gradient_norm(model: Network) -> float:
    """Euclidean norm of the whole gradient."""
    return total_norm(p.grad for p in model.parameters() if p.grad is not None)


def optimizer_step(
    model: Network, optimizer: Optimizer, rate: float, *, norm: float = 0.0, max_norm: float | None = None
) -> None:
    """Take one optimizer step and clamp the logit scale of a CLIP model.

    Args:
        model: the model, with gradients set.
        optimizer: the optimizer of the model's weights.
        rate: learning rate of this step.
        norm: norm of the whole gradient.
        max_norm: maximum norm, to which larger gradients are scaled down; unset: no scaling.
    """
    if max_norm is not None and norm > max_norm:
        for p in model.parameters():
            if p.grad is not None:
                p.grad.mul_(max_norm / norm)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    if isinstance(model, CLIP):
        model.clamp_logit_scale()
