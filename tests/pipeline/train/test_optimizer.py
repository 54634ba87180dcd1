import math

import pytest
import torch

from pipeline.train.config import TrainConfig
from pipeline.train.optimizer import learning_rate, make_optimizer, optimizer_step
from tests.pipeline.model.models import small_clip


def test_warm_up_then_cosine() -> None:
    config = TrainConfig(learning_rate=1.0, warmup_steps=4)
    rates = [learning_rate(config, step, 12) for step in range(12)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[8] == pytest.approx(0.5)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert 0 < rates[-1] == pytest.approx(0.5 * (1 + math.cos(math.pi * 7 / 8)))


def test_no_warm_up() -> None:
    assert learning_rate(TrainConfig(learning_rate=1.0, warmup_steps=0), 0, 5) == 1.0


def test_only_matrices_decay() -> None:
    """Not gains, biases and the logit scale. Without gradients Adam does nothing but decay."""
    model = small_clip()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make_optimizer(model, TrainConfig(weight_decay=0.5))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer_step(model, optimizer, 0.1)
    for name, p in model.named_parameters():
        expected = before[name] * 0.95 if p.ndim >= 2 else before[name]
        torch.testing.assert_close(p.detach(), expected, msg=name)


def test_a_step_gives_the_gradients_norm_and_bounds_the_logit_scale() -> None:
    model = small_clip()
    optimizer = make_optimizer(model, TrainConfig())
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    model.logit_scale.grad = torch.tensor(-3.0)
    model.text_tower.projection.weight.grad = torch.full_like(model.text_tower.projection.weight, 0.25)
    assert optimizer_step(model, optimizer, 10.0) == pytest.approx(math.sqrt(9 + 256 / 16))
    assert model.logit_scale.exp().item() == pytest.approx(100)
