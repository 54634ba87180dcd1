"""Memory that is worked out against memory that a real graph holds."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from pipeline.model.config import ImageTowerConfig, ModelConfig, model_config
from pipeline.model.objectives.clip import CLIP
from pipeline.train.costs.memory import RESERVE, Footprint, Graph, footprint
from tests.pipeline.model.weights.test_convert import TRANSFORMER

RESNET = replace(
    TRANSFORMER,
    image=ImageTowerConfig(architecture="resnet50_clip", image_size=64, options={"img_size": 64, "width_factor": 0.25}),
)


def worked_out(config: ModelConfig, **options: int) -> Footprint:
    return footprint(config, global_batch_size=256, num_workers=2, **options)


def held(tower: nn.Module, chunk: Tensor) -> int:
    """Bytes of what autograd saves on real tensors, weights excepted."""
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        tower(chunk)
    own = {weight.untyped_storage().data_ptr() for weight in tower.parameters()}
    return sum(tensor.untyped_storage().nbytes() for place, tensor in saved.items() if place not in own)


@pytest.mark.parametrize("num_samples", [2, 5])
@pytest.mark.parametrize("num_tokens", [12, 5])
def test_graphs_hold_what_autograd_saves(num_samples: int, num_tokens: int) -> None:
    network, found = CLIP(TRANSFORMER).train(), worked_out(TRANSFORMER, num_tokens=num_tokens)
    images, tokens = torch.rand(num_samples, 3, 64, 64), torch.zeros(num_samples, num_tokens, dtype=torch.int64)
    assert found.image.num_bytes(num_samples) == held(network.image_tower, images)
    assert found.text.num_bytes(num_samples) == held(network.text_tower, tokens)


def test_graphs_of_networks_with_batch_norms() -> None:
    """Measured with them are the running statistics; those of the chunk are wider than fake tensors say."""
    network, graph = CLIP(RESNET).train(), worked_out(RESNET).image
    measured = held(network.image_tower, torch.rand(3, 3, 64, 64))
    statistics = sum(buffer.nbytes for buffer in network.image_tower.buffers())
    assert 0 <= measured - graph.num_bytes(3) <= 2 * statistics


def test_state_is_weights_gradients_and_moments() -> None:
    network = CLIP(TRANSFORMER)
    num_parameters = sum(weight.numel() for weight in network.parameters())
    assert worked_out(TRANSFORMER).num_parameters == num_parameters
    assert worked_out(TRANSFORMER).state == 16 * num_parameters
    assert worked_out(TRANSFORMER, moment_bytes=2).state == 12 * num_parameters


def test_a_batch_is_shared_out_but_for_the_texts_features() -> None:
    """Pixels and tokens of two batches, four features of a pair each; two of each text; two tiles."""
    few, many = (footprint(TRANSFORMER, global_batch_size=256, num_workers=n).batch for n in (1, 256))
    pair = 2 * (3 * 64**2 + 4 * 12) + 4 * 4 * 48
    assert few - many == 255 * pair
    assert many == pair + 2 * 256 * 4 * 48 + 2 * 4 * 4096 * 8192


@settings(max_examples=50)
@given(
    fixed=st.integers(0, 10**9),
    image=st.integers(1, 10**9),
    text=st.integers(1, 10**8),
    room=st.integers(10**9, 10**11),
)
def test_the_largest_chunk_fits_and_its_double_does_not(fixed: int, image: int, text: int, room: int) -> None:
    found = Footprint(
        num_parameters=10**7, moments=8 * 10**7, batch=10**8, image=Graph(fixed, image), text=Graph(fixed, text)
    )
    size = found.largest_chunk(room)
    assert size == 0 or found.peak(size, size) <= (1 - RESERVE) * room
    assert found.peak(max(1, 2 * size), max(1, 2 * size)) > (1 - RESERVE) * room


def test_the_largest_resnet_fits_the_recipes_gpus() -> None:
    """A group of 64 images, and 64 captions, on 80 GB and not on 40: see jobs/configs/rn50x64.toml."""
    found = footprint(model_config("RN50x64"), global_batch_size=32768, num_workers=256)
    assert [found.largest_chunk(gib << 30) for gib in (40, 80)] == [16, 64]
    assert found.image.per_sample == pytest.approx(890 * 2**20, rel=0.01)
