import pytest
import torch
from torch import nn

from pipeline.train.step.graph_budget import Budget


def chunks(*sizes: int) -> list[torch.Tensor]:
    return [torch.zeros(size, 10) for size in sizes]


def test_a_graph_is_measured_once() -> None:
    """A linear layer saves its input, a tanh its output. The second layer also saves weights, which are not counted."""
    budget = Budget(10**9)
    layers = nn.Sequential(nn.Linear(10, 30), nn.Tanh(), nn.Linear(30, 30))
    budget.begin(layers.parameters)
    (chunk,) = chunks(4)
    with budget.measured("images", chunk):
        layers(chunk)
    assert budget.bytes_per_input == {"images": (4 * 10 + 4 * 30) * 4 / 40}
    with budget.measured("images", chunk):
        layers(layers[0].weight)
    assert budget.bytes_per_input["images"] == 16


def test_copies_of_weights_in_another_precision_are_not_counted() -> None:
    """So the bytes per input element do not depend on the size of the measured chunk."""
    budget, layers = Budget(10**9), nn.Sequential(nn.Linear(10, 30), nn.Tanh(), nn.Linear(30, 30))
    budget.begin(layers.parameters)
    for name, chunk in zip(("two", "nine"), chunks(2, 9), strict=True):
        with budget.measured(name, chunk), torch.autocast("cpu", torch.bfloat16):
            layers(chunk)
    assert budget.bytes_per_input["two"] == budget.bytes_per_input["nine"] == (2 * 10 + 2 * 30) / 10


def test_only_the_last_chunk_is_kept_before_a_graph_is_measured() -> None:
    assert Budget(0).first_kept("images", chunks(2, 2, 2)) == 2
    assert Budget(10**9).first_kept("images", chunks(2, 2, 2)) == 2


@pytest.mark.parametrize(("max_bytes", "first"), [(79, 3), (80, 2), (199, 2), (200, 1), (240, 0)])
def test_as_many_graphs_are_kept_as_the_budget_allows(max_bytes: int, first: int) -> None:
    """Graphs take 40, 120, 80 and 80 bytes; they are kept from the last one backwards, and the last one is free."""
    budget = Budget(max_bytes)
    budget.bytes_per_input["texts"] = 4.0
    budget.begin()
    assert budget.first_kept("texts", chunks(1, 3, 2, 2)) == first


def test_towers_share_the_budget_and_each_step_starts_with_all_of_it() -> None:
    budget = Budget(100)
    budget.bytes_per_input |= {"texts": 4.0, "images": 4.0}
    for _ in range(2):
        budget.begin()
        assert budget.first_kept("texts", chunks(2, 2, 2)) == 1
        assert budget.first_kept("images", chunks(2, 2, 2)) == 2
