"""Adam with half-precision moments and weights against torch's, whole and in shards, in one go and resumed."""

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
"""The fourth is more than a block."""
RECIPE: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.98), "eps": 1e-6}


def parameters(dtype: torch.dtype = torch.float32, shapes: Sequence[tuple[int, ...]] = SHAPES) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    found = [nn.Parameter((0.02 * torch.randn(shape, generator=generator)).to(dtype)) for shape in shapes]
    for p in found:
        p.grad_dtype = torch.float32
    return found


def ours(params: Sequence[Tensor], moments: torch.dtype = torch.bfloat16, seed: int = 1, **recipe: Any) -> HalfAdamW:
    half = len(params) // 2
    groups = [{"params": params[:half], "weight_decay": 0.2}, {"params": params[half:], "weight_decay": 0.0}]
    return HalfAdamW(groups, **RECIPE | recipe, moments=moments, seed=seed)


def set_random_gradients(params: Sequence[Tensor], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for p in params:
        p.grad = 1e-4 * torch.randn(p.shape, generator=generator)


def test_with_everything_in_float32_it_is_torchs() -> None:
    one, two = parameters(), parameters()
    groups = [{"params": one[:2], "weight_decay": 0.2}, {"params": one[2:], "weight_decay": 0.0}]
    theirs, optimizer = torch.optim.AdamW(groups, **RECIPE), ours(two, torch.float32)
    for step in range(5):
        for params in (one, two):
            set_random_gradients(params, step)
        theirs.step()
        optimizer.step()
    for p, q in zip(one, two, strict=True):
        torch.testing.assert_close(q, p, rtol=1e-6, atol=1e-9)
        for name in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(optimizer.state[q][name], theirs.state[p][name], rtol=1e-5, atol=1e-12)


def test_half_precision_moments_stay_near_torchs() -> None:
    """Single ones within their spacing, means much nearer; and weights within a hundredth of the way they have gone."""
    shape = ((100, 700),)
    one, two = parameters(shapes=shape)[0], parameters(shapes=shape)[0]
    theirs, optimizer = torch.optim.AdamW([one], weight_decay=0.0, **RECIPE), ours([two])
    for step in range(30):
        for p in (one, two):
            set_random_gradients([p], step)
        theirs.step()
        optimizer.step()
    for name in ("exp_avg", "exp_avg_sq"):
        found, expected = optimizer.state[two][name], theirs.state[one][name]
        assert found.dtype == torch.bfloat16
        assert ((found.float() - expected).abs().mean() / expected.abs().mean()).item() < 0.01
        assert abs((found.float() - expected).mean() / expected.abs().mean()).item() < 1e-4
    moved = one - parameters(shapes=shape)[0]
    assert ((one - two).abs().mean() / moved.abs().mean()).item() < 0.01


@pytest.mark.parametrize("beta2", [0.98, 0.999])
def test_a_second_moment_comes_down_again(beta2: float) -> None:
    """Without gradients it decays by beta2 a step, on average; to the nearest, with beta2 = 0.999, it never would."""
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


def test_steps_too_small_for_half_precision_weights_add_up() -> None:
    """By a thousandth of the distance to the next number, a hundred times."""
    distance = 2.0**-7
    p = nn.Parameter(torch.ones(20_000, dtype=torch.bfloat16))
    p.grad_dtype = torch.float32
    optimizer = ours([p], lr=distance / 1000)
    for _ in range(100):
        p.grad = torch.full((20_000,), -1.0)
        optimizer.step()
    assert p.dtype == torch.bfloat16
    assert (p.float().mean().item() - 1) / distance == pytest.approx(0.1, abs=5 * (0.1 / 20_000) ** 0.5)


def test_it_depends_on_the_seed_and_on_nothing_else() -> None:
    found = []
    for seed in (1, 1, 2):
        params = parameters(torch.bfloat16)
        optimizer = ours(params, seed=seed)
        for step in range(2):
            torch.rand(3)
            set_random_gradients(params, step)
            optimizer.step()
        found.append(params)
    assert all(torch.equal(p, q) for p, q in zip(found[0], found[1], strict=True))
    assert not torch.equal(found[0][0], found[2][0])


@pytest.mark.parametrize("moments", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_it_goes_on_bit_by_bit_from_a_saved_state(moments: torch.dtype, weights: torch.dtype) -> None:
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
    other = ours(resumed, moments)
    other.load_state_dict(saved["optimizer"])
    for step in (2, 3):
        set_random_gradients(resumed, step)
        other.step()
    for p, q in zip(params, resumed, strict=True):
        assert torch.equal(p, q)
        for name, value in optimizer.state[p].items():
            assert other.state[q][name].dtype == value.dtype
            assert torch.equal(other.state[q][name], value), name
    saved_steps = {int(state["step"]) for state in saved["optimizer"]["state"].values()}
    assert saved_steps == {2}, "what was loaded is not moved on"


@pytest.fixture
def _no_ranks() -> Iterator[None]:
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.usefixtures("_no_ranks")
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_shards_of_rows_take_the_step_that_the_whole_takes(weights: torch.dtype) -> None:
    """On three ranks one after the other, none of which can talk to another: there is no need to."""
    whole = parameters(weights, SHAPES[3:])
    optimizer = ours(whole)
    for step in range(2):
        set_random_gradients(whole, step)
        optimizer.step()
    for rank in range(3):
        dist.init_process_group("fake", rank=rank, world_size=3, store=FakeStore())
        mesh = init_device_mesh("cpu", (3,), mesh_dim_names=(f"as seen by {rank}",))  # torch caches what it has met

        def own(full: Tensor, rank: int = rank, mesh: Any = mesh) -> DTensor:
            part = full.detach().chunk(3)[rank].clone()
            return DTensor.from_local(part, mesh, [Shard(0)], shape=full.shape, stride=full.stride())

        shards = [nn.Parameter(own(p)) for p in parameters(weights, SHAPES[3:])]
        in_shards = ours(shards)
        for step in range(2):
            set_random_gradients(whole, step)
            for shard, p in zip(shards, whole, strict=True):
                assert p.grad is not None
                shard.grad_dtype = torch.float32
                shard.grad = own(p.grad)
            in_shards.step()
        for shard, p in zip(shards, whole, strict=True):
            assert isinstance(shard, DTensor)
            assert torch.equal(shard.to_local(), p.detach().chunk(3)[rank])
            state = in_shards.state[shard]["exp_avg_sq"]
            assert isinstance(state, DTensor)
            assert torch.equal(state.to_local(), optimizer.state[p]["exp_avg_sq"].chunk(3)[rank])
        dist.destroy_process_group()


RUN = TrainConfig(learning_rate=3e-3, warmup_steps=5, global_batch_size=8)


@pytest.fixture(scope="module")
def plain_losses() -> Tensor:
    return torch.tensor(losses(RUN, 45))


@pytest.mark.parametrize("text_weights", ["fp32", "bf16"])
def test_training_follows_the_curve_of_float32(plain_losses: Tensor, text_weights: StoredPrecision) -> None:
    """Within a twentieth of what is learned at any step, and ten times nearer on average."""
    learned = plain_losses[0] - plain_losses[-1]
    assert learned > 1
    found = torch.tensor(losses(replace(RUN, moments="bf16", text_weights=text_weights), 45))
    away = (found - plain_losses) / learned
    assert 0 < away.abs().max() < 0.05
    assert abs(away.mean()) < 0.005
