import math

import open_clip
import pytest
import torch
from open_clip_train.scheduler import cosine_lr

from pipeline import paper
from pipeline.model.config import MODELS
from pipeline.model.weights.convert import empty_clip
from pipeline.model.weights.parameter_names import Names
from pipeline.train.config import TrainConfig
from pipeline.train.optimizer.optimizer import gradient_norm, is_decayed, learning_rate, make_optimizer, optimizer_step
from tests.pipeline.model.models import small_clip


def test_the_rate_warms_up_and_then_follows_a_cosine() -> None:
    config = TrainConfig(learning_rate=1.0, warmup_steps=4)
    rates = [learning_rate(config, step, 12) for step in range(12)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[8] == pytest.approx(0.5)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert 0 < rates[-1] == pytest.approx(0.5 * (1 + math.cos(math.pi * 7 / 8)))


def test_without_warmup_the_rate_starts_at_its_maximum() -> None:
    assert learning_rate(TrainConfig(learning_rate=1.0, warmup_steps=0), 0, 5) == 1.0


def test_only_matrices_decay() -> None:
    """Gains, biases and the logit scale do not decay. With zero gradients, a step of Adam only decays weights."""
    model = small_clip()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make_optimizer(model, TrainConfig(weight_decay=0.5))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer_step(model, optimizer, 0.1)
    for name, p in model.named_parameters():
        expected = before[name] * 0.95 if p.ndim >= 2 else before[name]
        torch.testing.assert_close(p.detach(), expected, msg=name)


@pytest.mark.parametrize("name", list(paper.MODEL_SIZES))
def test_the_same_weights_decay_as_in_open_clip(name: str) -> None:
    """Compares parameter names in all models of the paper, with the rule in open_clip_train's main."""
    ours = empty_clip(MODELS[name])
    names = Names(ours.state_dict(), "open_clip")
    decayed = {
        their_name for our_name, p in ours.named_parameters() if is_decayed(p) for their_name in names.theirs[our_name]
    }
    with torch.device("meta"):
        config = open_clip.get_model_config(name.replace("/", "-").replace("@336px", "-336") + "-quickgelu")
        peer = open_clip.CLIP(**config)
    excluded = ("bn", "ln", "bias", "logit_scale")
    assert decayed == {
        name for name, p in peer.named_parameters() if p.ndim >= 2 and not any(part in name for part in excluded)
    }


@pytest.mark.parametrize(("beta2", "epsilon"), [(0.98, 1e-6), (0.999, 1e-8)], ids=["ViT", "ResNet"])
def test_steps_equal_those_of_torch_with_open_clips_schedule(beta2: float, epsilon: float) -> None:
    """Compares weights, learning rates and the clamped logit scale over twenty steps with the same gradients."""
    num_steps = 20
    config = TrainConfig(learning_rate=0.02, warmup_steps=4, beta2=beta2, epsilon=epsilon)
    model, peer = small_clip(), small_clip()
    optimizer = make_optimizer(model, config)
    weights = [p for p in peer.parameters() if p.ndim >= 2]
    others = [p for p in peer.parameters() if p.ndim < 2]
    groups = [{"params": others, "weight_decay": 0.0}, {"params": weights, "weight_decay": config.weight_decay}]
    theirs = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, beta2), eps=epsilon, foreach=False)
    schedule = cosine_lr(theirs, config.learning_rate, config.warmup_steps, num_steps)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for network in (model, peer):
            network.logit_scale.fill_(4.55)  # near ln 100
    clamped = False
    for step in range(num_steps):
        for p, q in zip(model.parameters(), peer.parameters(), strict=True):
            p.grad = 1e-3 * torch.randn(p.shape, generator=generator)
            q.grad = p.grad.clone()
        assert model.logit_scale.grad is not None
        assert peer.logit_scale.grad is not None
        model.logit_scale.grad.fill_(-1e-3)
        peer.logit_scale.grad.fill_(-1e-3)
        rate = learning_rate(config, step, num_steps)
        assert rate == pytest.approx(schedule(step), rel=1e-14)
        optimizer_step(model, optimizer, rate)
        theirs.step()
        clamped = clamped or peer.logit_scale.item() > math.log(100)
        with torch.no_grad():
            peer.logit_scale.clamp_(0, math.log(100))
        for (name, p), q in zip(model.named_parameters(), peer.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=2e-6, atol=2e-7, msg=f"{name} at step {step}")
    assert clamped


def test_the_gradient_norm_and_the_maximum_logit_scale() -> None:
    model = small_clip()
    optimizer = make_optimizer(model, TrainConfig())
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    model.logit_scale.grad = torch.tensor(-3.0)
    model.text_tower.projection.weight.grad = torch.full_like(model.text_tower.projection.weight, 0.25)
    assert gradient_norm(model) == pytest.approx(math.sqrt(9 + 256 / 16))
    optimizer_step(model, optimizer, 10.0)
    assert model.logit_scale.exp().item() == pytest.approx(100)


@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_gradients_are_clipped_as_in_torch(max_norm: float) -> None:
    model, peer = small_clip(), small_clip()
    generator = torch.Generator().manual_seed(0)
    for p, q in zip(model.parameters(), peer.parameters(), strict=True):
        p.grad = torch.randn(p.shape, generator=generator)
        q.grad = p.grad.clone()
    norm = gradient_norm(model)
    optimizer_step(model, make_optimizer(model, TrainConfig()), 1e-3, norm=norm, max_norm=max_norm)
    assert torch.nn.utils.clip_grad_norm_(peer.parameters(), max_norm).item() == pytest.approx(norm)
    for p, q in zip(model.parameters(), peer.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
    assert gradient_norm(model) == pytest.approx(min(norm, max_norm), rel=1e-5)
