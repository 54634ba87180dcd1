"""Computed memory compared with the memory of real graphs."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from pipeline.model.config import ImageTowerConfig, ModelConfig, model_config
from pipeline.model.objectives.clip import CLIP
from pipeline.train.costs.memory import RESERVED_SHARE, Footprint, Graph, footprint
from tests.pipeline.model.weights.test_convert import TRANSFORMER

RESNET = replace(
    TRANSFORMER,
    image=ImageTowerConfig(architecture="resnet50_clip", image_size=64, options={"img_size": 64, "width_factor": 0.25}),
)


def computed(config: ModelConfig, **options: int) -> Footprint:
    return footprint(config, global_batch_size=256, num_workers=2, **options)


def saved_bytes(tower: nn.Module, chunk: Tensor) -> int:
    """Bytes that autograd saves on real tensors, without the weights."""
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        tower(chunk)
    weights = {weight.untyped_storage().data_ptr() for weight in tower.parameters()}
    return sum(tensor.untyped_storage().nbytes() for address, tensor in saved.items() if address not in weights)


@pytest.mark.parametrize("num_samples", [2, 5])
@pytest.mark.parametrize("num_tokens", [12, 5])
def test_graph_sizes_equal_what_autograd_saves(num_samples: int, num_tokens: int) -> None:
    network, memory = CLIP(TRANSFORMER).train(), computed(TRANSFORMER, num_tokens=num_tokens)
    images, tokens = torch.rand(num_samples, 3, 64, 64), torch.zeros(num_samples, num_tokens, dtype=torch.int64)
    assert memory.image.num_bytes(num_samples) == saved_bytes(network.image_tower, images)
    assert memory.text.num_bytes(num_samples) == saved_bytes(network.text_tower, tokens)


def test_graphs_of_networks_with_batch_norms() -> None:
    """The measurement includes running statistics, and chunk statistics in a wider type than that of fake tensors."""
    network, graph = CLIP(RESNET).train(), computed(RESNET).image
    measured = saved_bytes(network.image_tower, torch.rand(3, 3, 64, 64))
    statistics = sum(buffer.nbytes for buffer in network.image_tower.buffers())
    assert 0 <= measured - graph.num_bytes(3) <= 2 * statistics


def test_state_is_weights_gradients_and_moments() -> None:
    network = CLIP(TRANSFORMER)
    num_parameters = sum(weight.numel() for weight in network.parameters())
    assert computed(TRANSFORMER).num_parameters == num_parameters
    assert computed(TRANSFORMER).state == 16 * num_parameters
    assert computed(TRANSFORMER, moment_bytes=2).state == 12 * num_parameters


def test_a_batch_is_divided_among_workers_except_for_the_text_features() -> None:
    """Pixels and tokens of two batches, four features per local pair, two features per global text, two tiles."""
    few, many = (footprint(TRANSFORMER, global_batch_size=256, num_workers=n).batch for n in (1, 256))
    pair = 2 * (3 * 64**2 + 4 * 12) + 4 * 4 * 48
    assert few - many == 255 * pair
    assert many == pair + 2 * 256 * 4 * 48 + 2 * 4 * 4096 * 8192


@settings(max_examples=50)
@given(
    fixed=st.integers(0, 10**9),
    image=st.integers(1, 10**9),
    text=st.integers(1, 10**8),
    device_bytes=st.integers(10**9, 10**11),
)
def test_the_largest_chunk_fits_and_its_double_does_not(fixed: int, image: int, text: int, device_bytes: int) -> None:
    memory = Footprint(
        num_parameters=10**7, moments=8 * 10**7, batch=10**8, image=Graph(fixed, image), text=Graph(fixed, text)
    )
    size = memory.largest_chunk(device_bytes)
    assert size == 0 or memory.peak(size, size) <= (1 - RESERVED_SHARE) * device_bytes
    assert memory.peak(max(1, 2 * size), max(1, 2 * size)) > (1 - RESERVED_SHARE) * device_bytes


def test_the_largest_resnet_fits_the_recipes_gpus() -> None:
    """A group of 64 images and 64 captions fits in 80 GB, but not in 40 GB: see jobs/configs/rn50x64.toml."""
    memory = footprint(model_config("RN50x64"), global_batch_size=32768, num_workers=256)
    assert [memory.largest_chunk(gib << 30) for gib in (40, 80)] == [16, 64]
    assert memory.image.per_sample == pytest.approx(890 * 2**20, rel=0.01)
