"""Tests that skipped steps change nothing and that too many of them end the run."""

import logging
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pipeline.model.objectives.clip import CLIP
from pipeline.train.config import StoredPrecision, TrainConfig
from pipeline.train.optimizer.nonfinite_steps import NonFiniteGuard
from pipeline.train.optimizer.optimizer import gradient_norm, make_optimizer, optimizer_step
from pipeline.train.step.gradients import Batch, set_gradients
from tests.pipeline.model.models import CONFIG, small_batch
from tests.pipeline.train.ranks import TOWERS


def train(
    moments: StoredPrecision, poisoned: int | None, *, gradient_only: bool = False
) -> tuple[list[bool], list[Tensor]]:
    """Train a network with batch norms for four steps; `poisoned` is the index of a step that is not finite, and if it
    is None, step 2 is left out. Return which steps were taken, and the final weights, statistics and optimizer state.
    """
    torch.manual_seed(0)
    network = CLIP(replace(CONFIG, image=TOWERS["resnet"])).train()
    config = TrainConfig(moments=moments)
    optimizer, guard = make_optimizer(network, config), NonFiniteGuard(network, 1)
    taken = []
    for seed in range(4):
        if poisoned is None and seed == 2:
            continue
        guard.remember()
        loss = set_gradients(network, Batch(*small_batch(8, seed)), chunk_size=8, bf16=False, norm_group_size=4).loss
        if seed == poisoned:
            assert network.text_tower.projection.weight.grad is not None
            network.text_tower.projection.weight.grad[0, 0] = torch.inf
            loss = loss if gradient_only else torch.nan
        norm = gradient_norm(network)
        taken.append(guard.allows(seed + 1, loss, norm))
        if taken[-1]:
            optimizer_step(network, optimizer, 1e-3, norm=norm)
    moments_at_end = [value for state in optimizer.state.values() for value in state.values()]
    return taken, [*network.state_dict().values(), *moments_at_end]


@pytest.mark.parametrize("moments", ["fp32", "bf16"])
@pytest.mark.parametrize("gradient_only", [False, True], ids=["loss", "gradient"])
def test_a_skipped_step_changes_nothing(moments: StoredPrecision, gradient_only: bool) -> None:
    """Weights, moments, Adam's step count and the batch norms' statistics and counts are as without that batch."""
    taken, actual = train(moments, 2, gradient_only=gradient_only)
    assert taken == [True, True, False, True]
    _, expected = train(moments, None)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_skipped_steps_are_logged_and_too_many_end_the_run(caplog: pytest.LogCaptureFixture) -> None:
    guard = NonFiniteGuard(torch.nn.Linear(1, 1), max_skipped_steps=2)
    with caplog.at_level(logging.WARNING, "clip"):
        assert not guard.allows(5, float("nan"), 1.0)
        assert not guard.allows(6, 1.0, float("inf"))
        assert guard.allows(7, 1.0, 1.0)  # resets the count
        assert not guard.allows(8, float("inf"), 1.0)
        assert not guard.allows(9, float("inf"), 1.0)
    assert "step 6: the loss is 1.0, the norm of the gradient is inf; the step is skipped" in caplog.text
    with pytest.raises(
        FloatingPointError, match=r"step 10: the loss is nan.*3 steps in a row.*max_skipped_steps=2.*learning_rate"
    ):
        guard.allows(10, float("nan"), 1.0)


def test_zero_skipped_steps_end_the_run_at_the_first() -> None:
    with pytest.raises(FloatingPointError, match="step 1: the loss is inf"):
        NonFiniteGuard(torch.nn.Linear(1, 1), max_skipped_steps=0).allows(1, float("inf"), 1.0)
