"""Adam with decoupled weight decay, a warm-up and a cosine (section 2.5)."""

import math

import torch
from torch.optim import AdamW

from pipeline.model.clip import CLIP
from pipeline.model.objectives import Network
from pipeline.train.config import TrainConfig


def make_optimizer(model: Network, config: TrainConfig) -> AdamW:
    """AdamW that decays all weights but gains, biases and the logit scale: those of fewer than two dimensions."""
    weights = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": weights, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    betas = (config.beta1, config.beta2)
    return AdamW(groups, lr=config.learning_rate, betas=betas, eps=config.epsilon, fused=True)


def learning_rate(config: TrainConfig, step: int, num_steps: int) -> float:
    """The rate of a step (0 is the first): linear up over the warm-up, then half a cosine down to zero."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, num_steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def optimizer_step(model: Network, optimizer: AdamW, rate: float) -> float:
    """Take one step at this rate, keep a CLIP's logit scale in bounds; returns the norm of the whole gradient."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    if isinstance(model, CLIP):
        model.clamp_logit_scale()
    return float(norm)
