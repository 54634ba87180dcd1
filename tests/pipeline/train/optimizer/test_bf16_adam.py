"""Tests of half-precision Adam: against torch's Adam, with sharded weights, and resumed from a saved state."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from pipeline.train.config import StoredPrecision, TrainConfig
from pipeline.train.optimizer.bf16_adam import HalfAdamW
from pipeline.train.optimizer.stochastic_rounding import BLOCK
from tests.pipeline.train.learning import losses

SHAPES = ((300, 70), (), (3,), (BLOCK // 1000 + 80, 1000), (7, 11, 3))
"""The fourth shape has more elements than a block."""
RECIPE: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.98), "eps": 1e-6}


def parameters(dtype: torch.dtype = torch.float32, shapes: Sequence[tuple[int, ...]] = SHAPES) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter((0.02 * torch.randn(shape, generator=generator)).to(dtype)) for shape in shapes]
    for p in params:
        p.grad_dtype = torch.float32
    return params


def ours(params: Sequence[Tensor], moments: torch.dtype = torch.bfloat16, seed: int = 1, **recipe: Any) -> HalfAdamW:
    half = len(params) // 2
    groups = [{"params": params[:half], "weight_decay": 0.2}, {"params": params[half:], "weight_decay": 0.0}]
    return HalfAdamW(groups, **RECIPE | recipe, moments=moments, seed=seed)


def set_random_gradients(params: Sequence[Tensor], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for p in params:
        p.grad = 1e-4 * torch.randn(p.shape, generator=generator)


def test_float32_steps_equal_torchs() -> None:
    torch_params, our_params = parameters(), parameters()
    groups = [{"params": torch_params[:2], "weight_decay": 0.2}, {"params": torch_params[2:], "weight_decay": 0.0}]
    theirs, optimizer = torch.optim.AdamW(groups, **RECIPE), ours(our_params, torch.float32)
    for step in range(5):
        for params in (torch_params, our_params):
            set_random_gradients(params, step)
        theirs.step()
        optimizer.step()
    for p, q in zip(torch_params, our_params, strict=True):
        torch.testing.assert_close(q, p, rtol=1e-6, atol=1e-9)
        for name in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(optimizer.state[q][name], theirs.state[p][name], rtol=1e-5, atol=1e-12)


def test_half_precision_moments_and_weights_are_close_to_torchs() -> None:
    """Moments differ by less than 1 percent, their means by much less, and weights by 1 percent of their change."""
    shape = ((100, 700),)
    torch_param, our_param = parameters(shapes=shape)[0], parameters(shapes=shape)[0]
    theirs, optimizer = torch.optim.AdamW([torch_param], weight_decay=0.0, **RECIPE), ours([our_param])
    for step in range(30):
        for p in (torch_param, our_param):
            set_random_gradients([p], step)
        theirs.step()
        optimizer.step()
    for name in ("exp_avg", "exp_avg_sq"):
        actual, expected = optimizer.state[our_param][name], theirs.state[torch_param][name]
        assert actual.dtype == torch.bfloat16
        assert ((actual.float() - expected).abs().mean() / expected.abs().mean()).item() < 0.01
        assert abs((actual.float() - expected).mean() / expected.abs().mean()).item() < 1e-4
    change = torch_param - parameters(shapes=shape)[0]
    assert ((torch_param - our_param).abs().mean() / change.abs().mean()).item() < 0.01


@pytest.mark.parametrize("beta2", [0.98, 0.999])
def test_a_second_moment_decays(beta2: float) -> None:
    """With zero gradients it decays by beta2 per step; rounded to nearest, it would not decay for beta2 = 0.999."""
    p = nn.Parameter(torch.zeros(2000))
    optimizer = ours([p], lr=0.0, betas=(0.9, beta2))
    p.grad = torch.ones(2000)
    optimizer.step()
    p.grad = torch.zeros(2000)
    first = optimizer.state[p]["exp_avg_sq"].float().mean()
    for _ in range(100):
        optimizer.step()
    assert (optimizer.state[p]["exp_avg_sq"].float().mean() / first).item() == pytest.approx(beta2**100, rel=5e-3)
    if beta2 == 0.999:
        assert torch.equal((first.bfloat16() * beta2).bfloat16(), first.bfloat16())


def test_updates_too_small_for_half_precision_weights_accumulate() -> None:
    """Updates of a thousandth of the distance to the next number, repeated a hundred times, have the right sum."""
    distance = 2.0**-7
    p = nn.Parameter(torch.ones(20_000, dtype=torch.bfloat16))
    p.grad_dtype = torch.float32
    optimizer = ours([p], lr=distance / 1000)
    for _ in range(100):
        p.grad = torch.full((20_000,), -1.0)
        optimizer.step()
    assert p.dtype == torch.bfloat16
    assert (p.float().mean().item() - 1) / distance == pytest.approx(0.1, abs=5 * (0.1 / 20_000) ** 0.5)


def test_rounding_depends_on_the_optimizers_seed_only() -> None:
    results = []
    for seed in (1, 1, 2):
        params = parameters(torch.bfloat16)
        optimizer = ours(params, seed=seed)
        for step in range(2):
            torch.rand(3)
            set_random_gradients(params, step)
            optimizer.step()
        results.append(params)
    assert all(torch.equal(p, q) for p, q in zip(results[0], results[1], strict=True))
    assert not torch.equal(results[0][0], results[2][0])


@pytest.mark.parametrize("moments", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_a_resumed_optimizer_continues_bit_for_bit(moments: torch.dtype, weights: torch.dtype) -> None:
    params = parameters(weights, SHAPES[:3])
    optimizer = ours(params, moments)
    for step in range(4):
        if step == 2:
            buffer = io.BytesIO()
            torch.save({"weights": params, "optimizer": optimizer.state_dict()}, buffer)
        set_random_gradients(params, step)
        optimizer.step()
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    resumed = saved["weights"]
    for p in resumed:
        p.grad_dtype = torch.float32
    resumed_optimizer = ours(resumed, moments)
    resumed_optimizer.load_state_dict(saved["optimizer"])
    for step in (2, 3):
        set_random_gradients(resumed, step)
        resumed_optimizer.step()
    for p, q in zip(params, resumed, strict=True):
        assert torch.equal(p, q)
        for name, value in optimizer.state[p].items():
            assert resumed_optimizer.state[q][name].dtype == value.dtype
            assert torch.equal(resumed_optimizer.state[q][name], value), name
    saved_steps = {int(state["step"]) for state in saved["optimizer"]["state"].values()}
    assert saved_steps == {2}, "steps modified the loaded state"


@pytest.fixture
def _destroy_process_group() -> Iterator[None]:
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.usefixtures("_destroy_process_group")
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_sharded_and_unsharded_weights_are_updated_alike(weights: torch.dtype) -> None:
    """Runs three ranks in turn without communication between them, because the optimizer needs none."""
    whole = parameters(weights, SHAPES[3:])
    optimizer = ours(whole)
    for step in range(2):
        set_random_gradients(whole, step)
        optimizer.step()
    for rank in range(3):
        dist.init_process_group("fake", rank=rank, world_size=3, store=FakeStore())
        # A new name for each rank, because torch caches meshes
        mesh = init_device_mesh("cpu", (3,), mesh_dim_names=(f"mesh of rank {rank}",))

        def rows_of_rank(full: Tensor, rank: int = rank, mesh: Any = mesh) -> DTensor:
            part = full.detach().chunk(3)[rank].clone()
            return DTensor.from_local(part, mesh, [Shard(0)], shape=full.shape, stride=full.stride())

        shards = [nn.Parameter(rows_of_rank(p)) for p in parameters(weights, SHAPES[3:])]
        sharded_optimizer = ours(shards)
        for step in range(2):
            set_random_gradients(whole, step)
            for shard, p in zip(shards, whole, strict=True):
                assert p.grad is not None
                shard.grad_dtype = torch.float32
                shard.grad = rows_of_rank(p.grad)
            sharded_optimizer.step()
        for shard, p in zip(shards, whole, strict=True):
            assert isinstance(shard, DTensor)
            assert torch.equal(shard.to_local(), p.detach().chunk(3)[rank])
            state = sharded_optimizer.state[shard]["exp_avg_sq"]
            assert isinstance(state, DTensor)
            assert torch.equal(state.to_local(), optimizer.state[p]["exp_avg_sq"].chunk(3)[rank])
        dist.destroy_process_group()


RUN = TrainConfig(learning_rate=3e-3, warmup_steps=5, global_batch_size=8)


@pytest.fixture(scope="module")
def plain_losses() -> Tensor:
    return torch.tensor(losses(RUN, 45))


@pytest.mark.parametrize("text_weights", ["fp32", "bf16"])
def test_the_loss_curve_is_close_to_that_of_float32(plain_losses: Tensor, text_weights: StoredPrecision) -> None:
    """Losses differ by less than 5 percent of the total decrease at each step, and by 0.5 percent on average."""
    decrease = plain_losses[0] - plain_losses[-1]
    assert decrease > 1
    actual = torch.tensor(losses(replace(RUN, moments="bf16", text_weights=text_weights), 45))
    deviation = (actual - plain_losses) / decrease
    assert 0 < deviation.abs().max() < 0.05
    assert abs(deviation.mean()) < 0.005
