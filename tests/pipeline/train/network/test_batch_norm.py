import pytest
import torch
from torch import nn

from pipeline.train.network.batch_norm import BatchNorms

CHUNKS = torch.randn(3, 8, 4, generator=torch.Generator().manual_seed(0))


def step(norm: nn.BatchNorm1d, order: tuple[int, ...] = (0, 1, 2)) -> None:
    norms = BatchNorms(norm)
    with norms.collected():
        for index in order:
            norm(CHUNKS[index])
    with norms.held():
        for index in order:
            norm(CHUNKS[index])
    norms.move(None)


@pytest.mark.parametrize("momentum", [0.1, 0.01, None])
def test_statistics_are_updated_once_with_the_mean_over_the_chunks(momentum: float | None) -> None:
    norm = nn.BatchNorm1d(4, momentum=momentum)
    with torch.no_grad():
        norm.get_buffer("running_mean").fill_(3)
    weight = 1.0 if momentum is None else momentum  # None: the mean over all steps, and this is the first step
    step(norm)
    torch.testing.assert_close(norm.running_mean, (1 - weight) * 3 + weight * CHUNKS.mean((0, 1)))
    torch.testing.assert_close(norm.running_var, (1 - weight) + weight * CHUNKS.var(1).mean(0))
    assert norm.num_batches_tracked == torch.tensor(1)
    assert norm.momentum == momentum
    step(norm)
    assert norm.num_batches_tracked == torch.tensor(2)


def test_the_order_of_chunks_makes_no_difference() -> None:
    first, second = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
    step(first)
    step(second, (2, 0, 1))
    torch.testing.assert_close(first.running_mean, second.running_mean)
    torch.testing.assert_close(first.running_var, second.running_var)


def test_norms_in_eval_mode_do_not_change() -> None:
    norm = nn.BatchNorm1d(4).eval()
    before = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    step(norm)
    assert all(torch.equal(before[name], buffer) for name, buffer in norm.named_buffers())
