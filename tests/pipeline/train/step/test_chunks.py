import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.model.objectives.networks import Network
from pipeline.model.towers.image_tower import normalise
from pipeline.train.step import chunks, gradients
from pipeline.train.step.chunks import Chunks, available_memory
from pipeline.train.step.gradients import Batch, set_gradients
from tests.pipeline.model.models import small_batch
from tests.pipeline.train.ranks import Case, network_of, state_after

FULL = Case((12,), 100)


def batch() -> Batch:
    return Batch(*small_batch(12))


def limit_image_tower(
    network: Network, monkeypatch: pytest.MonkeyPatch, max_rows: int, *, with_graph_only: bool
) -> list[int]:
    """Make the image tower run out of memory for more than `max_rows` rows.

    Args:
        network: the network whose image tower is limited.
        monkeypatch: undoes the limit.
        max_rows: the largest number of rows that fits.
        with_graph_only: whether only passes with a graph fail. Otherwise every pass fails, with torch's own CPU error.

    Returns:
        A list that receives the number of rows of each call.
    """
    tower, calls = network.image_tower, []
    forward = tower.forward

    def limited(images: Tensor) -> Tensor:
        calls.append(len(images))
        if len(images) > max_rows and not with_graph_only:
            torch.empty(10**15)
        if len(images) > max_rows and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("out of memory")
        return forward(images)

    monkeypatch.setattr(tower, "forward", limited)
    return calls


def plain(case: Case) -> dict[str, Tensor]:
    """The state after a step without any lack of memory."""
    network = network_of(case)
    set_gradients(network, batch(), chunk_size=case.chunk_size, bf16=False, norm_group_size=case.norm_group_size)
    return dict(state_after(network))


@pytest.fixture(autouse=True)
def _float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Normalise images to float64, the precision of the networks in ranks.py."""
    monkeypatch.setattr(gradients, "normalise", lambda images: normalise(images).double())


@pytest.mark.parametrize("with_graph_only", [False, True])
def test_chunks_are_halved_until_they_fit_and_the_step_succeeds(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, with_graph_only: bool
) -> None:
    network = network_of(FULL)
    calls = limit_image_tower(network, monkeypatch, 3, with_graph_only=with_graph_only)
    worker_chunks = Chunks(12, 0, norm_group_size=None, bf16=False)
    with caplog.at_level(logging.WARNING, "clip"):
        worker_chunks.set_gradients(network, batch())
    assert worker_chunks.size == 3
    assert "chunk size reduced to 3 samples" in caplog.text
    expected = plain(FULL)
    for name, value in state_after(network):
        torch.testing.assert_close(value, expected[name], rtol=1e-10, atol=1e-13, msg=name)
    calls.clear()
    worker_chunks.set_gradients(network, batch())
    assert max(calls) == 3, "the next step starts with the size that fitted"


def test_kept_graphs_are_dropped_before_chunks_are_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of(FULL)
    worker_chunks = Chunks(3, 10**9, norm_group_size=None, bf16=False)
    worker_chunks.set_gradients(network, batch())
    calls = limit_image_tower(network, monkeypatch, 12, with_graph_only=True)
    worker_chunks.set_gradients(network, batch())
    assert calls == [3] * 4, "all graphs are kept"
    backward = Tensor.backward
    failed: list[bool] = []

    def fails_once(tensor: Tensor, *arguments: Tensor) -> None:
        if not failed:
            failed.append(True)
            raise torch.OutOfMemoryError("out of memory")
        backward(tensor, *arguments)  # type: ignore[no-untyped-call]

    monkeypatch.setattr(Tensor, "backward", fails_once)
    calls.clear()
    worker_chunks.set_gradients(network, batch())
    assert worker_chunks.size == 3
    assert calls == [3] * (4 + 4 + 3)
    expected = plain(FULL)
    for name, value in state_after(network):
        torch.testing.assert_close(value, expected[name], rtol=1e-10, atol=1e-13, msg=name)


def test_a_step_that_cannot_shrink_raises_and_restores_batch_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case((12,), 4, "resnet", norm_group_size=4)
    network = network_of(case)
    before = {name: value.clone() for name, value in network.named_buffers()}
    for with_graph_only in (False, True):
        with monkeypatch.context() as patch:
            limit_image_tower(network, patch, 3, with_graph_only=with_graph_only)
            with pytest.raises(torch.OutOfMemoryError, match="a step of norm_group_size=4 images does not fit"):
                Chunks(4, 0, norm_group_size=4, bf16=False).set_gradients(network, batch())
        assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())
    with monkeypatch.context() as patch:
        limit_image_tower(full_network := network_of(FULL), patch, 0, with_graph_only=False)
        with pytest.raises(torch.OutOfMemoryError, match="a step of one sample does not fit"):
            Chunks(4, 0, norm_group_size=None, bf16=False).set_gradients(full_network, batch())
    Chunks(4, 0, norm_group_size=4, bf16=False).set_gradients(network, batch())
    expected = plain(case)
    for name, value in state_after(network):
        torch.testing.assert_close(value, expected[name], rtol=1e-10, atol=1e-13, msg=name)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({8: 8.0, 16: 10.0, 32: 15.0, 64: 20.0, 100: 32.0}, 64),
        ({8: 8.0, 16: 15.9, 32: 31.0, 64: 1.0}, 8),
        ({8: 8.0, 16: 15.9, 32: 20.0, 64: 64.0, 100: 100.0}, 32),
        ({8: 8.0, 16: 10.0}, 16),
        ({}, 1),
    ],
)
def test_probing_stops_at_the_size_beyond_which_the_rate_no_longer_rises(
    monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float], expected: int
) -> None:
    """Sizes missing from `seconds` do not fit into memory."""

    def time_chunk(_self: Chunks, _network: Network, _batch: Batch, size: int) -> float:
        if size not in seconds:
            raise torch.OutOfMemoryError
        return seconds[size]

    monkeypatch.setattr(Chunks, "_time_chunk", time_chunk)
    images, tokens, lengths = (part[torch.arange(100) % 12] for part in small_batch(12))
    worker_chunks = Chunks(None, 0, norm_group_size=None, bf16=False)
    assert worker_chunks._probe(network_of(FULL), Batch(images, tokens, lengths), None) == expected


def test_probing_does_not_change_the_gradient_or_the_random_state() -> None:
    network = network_of(FULL)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    worker_chunks = Chunks(None, None, norm_group_size=None, bf16=False)
    worker_chunks.set_gradients(network, batch())
    assert worker_chunks.size in (8, 12)
    assert torch.equal(torch.get_rng_state(), state)
    expected = plain(FULL)
    for name, value in state_after(network):
        torch.testing.assert_close(value, expected[name], rtol=1e-10, atol=1e-13, msg=name)


def test_without_a_budget_graphs_are_kept_from_the_second_step_on(monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of(FULL)
    monkeypatch.setattr(chunks, "available_memory", lambda: 10**9)
    calls = limit_image_tower(network, monkeypatch, 12, with_graph_only=True)
    worker_chunks = Chunks(3, None, norm_group_size=None, bf16=False)
    for expected in (4 + 3, 4, 4):
        calls.clear()
        worker_chunks.set_gradients(network, batch())
        assert len(calls) == expected


@pytest.mark.parametrize(("limit", "expected"), [("max\n", 2048), ("1500\n", 1000), (None, 2048)])
def test_available_memory_respects_the_limit_of_the_container(tmp_path: Path, limit: str | None, expected: int) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:  9 kB\nMemAvailable:   2 kB\n")
    if limit:
        (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
        (tmp_path / "sys/fs/cgroup/memory.max").write_text(limit)
        (tmp_path / "sys/fs/cgroup/memory.current").write_text("500\n")
    assert available_memory(tmp_path) == expected
    assert available_memory(tmp_path / "missing") == 0
