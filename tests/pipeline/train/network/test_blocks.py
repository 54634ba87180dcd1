"""Tests of finding the residual blocks and of activation checkpointing."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from pipeline.model.config import MODELS, Objective
from pipeline.model.objectives.clip import CLIP
from pipeline.model.objectives.networks import empty_network
from pipeline.model.towers.image_tower import normalise
from pipeline.train.network.blocks import blocks, checkpoint_activations
from pipeline.train.step import gradients
from tests.pipeline.model.models import CONFIG, small_batch, small_clip
from tests.pipeline.train.ranks import Case, network_of, state_after, take_step


@pytest.mark.parametrize(
    ("name", "num_image_blocks"),
    [("ViT-L/14", 24), ("RN50", 3 + 4 + 6 + 3), ("tiny", 4)],
)
def test_blocks_of_both_towers(name: str, num_image_blocks: int) -> None:
    network = empty_network(MODELS[name])
    assert isinstance(network, CLIP)
    assert len(blocks(network.image_tower)) == num_image_blocks
    assert blocks(network)[num_image_blocks:] == list(network.text_tower.get_submodule("blocks").children())
    bag = empty_network(replace(MODELS[name], objective="contrastive-bag"))
    assert len(blocks(bag)) == num_image_blocks


@pytest.fixture
def _double_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "normalise", lambda images: normalise(images).double())


@pytest.mark.usefixtures("_double_images")
@pytest.mark.parametrize(
    ("tower", "objective"),
    [("transformer", "contrastive"), ("resnet", "contrastive"), ("resnet", "caption"), ("convnext", "bag")],
)
@pytest.mark.parametrize("budget_bytes", [0, 10**9])
def test_checkpointing_does_not_change_a_step(tower: str, objective: Objective, budget_bytes: int) -> None:
    """This includes the statistics of batch norms, which the recomputation does not update."""
    case = Case((8,), 4, tower, objective, budget_bytes=budget_bytes, norm_group_size=4 if tower == "resnet" else None)
    plain, network = network_of(case), network_of(case)
    checkpoint_activations(network)
    for trained in (plain, network):
        take_step(case, trained, 0, None)
    expected = dict(state_after(plain))
    for name, actual in state_after(network):
        torch.testing.assert_close(actual, expected.pop(name), rtol=1e-10, atol=1e-12, msg=name)
    assert not expected


def with_dropout(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: nn.functional.dropout(forward(x), 0.2)


@pytest.mark.usefixtures("_double_images")
def test_the_recomputation_draws_the_same_dropout_masks() -> None:
    batch = gradients.Batch(*small_batch(12))
    assert CONFIG.image.options["drop_rate"] > 0
    outcomes = []
    for checkpointed in (False, True):
        model = small_clip().double().train()
        for block in blocks(model):
            block.forward = with_dropout(block.forward)
        if checkpointed:
            checkpoint_activations(model)
        torch.manual_seed(5)
        gradients.set_gradients(model, batch, chunk_size=4, bf16=False)
        outcomes.append((dict(state_after(model)), torch.rand(3)))
    (plain, after_plain), (checkpointed_state, after_checkpointed) = outcomes
    assert torch.equal(after_plain, after_checkpointed)
    for name, expected in plain.items():
        torch.testing.assert_close(checkpointed_state[name], expected, rtol=1e-6, atol=1e-8, msg=name)


def saved_bytes(features: Iterator[Tensor]) -> list[int]:
    """The bytes, without weights, that autograd saves for each of these outputs."""
    storages: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    num_bytes, kept = [], []
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        for output in features:
            kept.append(output)
            num_bytes.append(sum(storages.values()))
            storages.clear()
    return num_bytes


def test_a_checkpointed_graph_holds_only_the_inputs_of_blocks() -> None:
    config = replace(MODELS["small"], text=replace(MODELS["small"].text, vocab_size=600))
    images, tokens = torch.zeros(2, 3, 128, 128), torch.full((2, 16), 599)

    def saved_by_both_towers(checkpointed: bool) -> list[int]:
        torch.manual_seed(0)
        model = CLIP(config).train()
        if checkpointed:
            checkpoint_activations(model)
        return saved_bytes(
            encode(inputs) for encode, inputs in ((model.encode_image, images), (model.encode_text, tokens))
        )

    for plain, checkpointed, length in zip(
        saved_by_both_towers(False), saved_by_both_towers(True), (65, 16), strict=True
    ):
        inputs = 8 * 2 * length * 256 * 4
        assert inputs <= checkpointed < plain / 8
