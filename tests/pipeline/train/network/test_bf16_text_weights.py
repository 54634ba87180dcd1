"""Tests of text towers in half precision: gradients, checkpoints and saved models."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import pipeline
from cluster import storage
from pipeline.model.config import Objective
from pipeline.model.objectives.clip import CLIP
from pipeline.model.objectives.networks import empty_network, network_for
from pipeline.model.tokenizer.tokenizer import Tokenizer
from pipeline.model.weights import model_folder
from pipeline.model.weights.model_folder import Model
from pipeline.train.checkpoints.checkpoint import Checkpoint, CheckpointFolder, Progress
from pipeline.train.config import TrainConfig
from pipeline.train.network.bf16_text_weights import halve_text_weights
from pipeline.train.optimizer.optimizer import make_optimizer, optimizer_step
from pipeline.train.step.gradients import Batch, set_gradients
from tests.pipeline.model.models import CONFIG, small_batch

HALF = TrainConfig(text_weights="bf16", moments="bf16", learning_rate=1e-3)


def halved(objective: Objective = "contrastive") -> CLIP:
    torch.manual_seed(0)
    network = network_for(replace(CONFIG, objective=objective)).train()
    halve_text_weights(network)
    assert isinstance(network, CLIP)
    return network


def set_step_gradients(network: CLIP, seed: int = 0) -> float:
    torch.manual_seed(3)
    return set_gradients(network, Batch(*small_batch(12, seed)), chunk_size=5, bf16=True).loss


def test_linear_and_embedding_weights_of_the_text_tower_become_bfloat16() -> None:
    network = halved()
    for name, p in network.named_parameters():
        is_matrix = p.ndim == 2 and "position" not in name
        is_half = name.startswith("text_tower.") and is_matrix
        assert p.dtype == (torch.bfloat16 if is_half else torch.float32), name


@pytest.mark.parametrize("objective", ["contrastive", "contrastive-bag"])
def test_gradients_equal_those_of_float32_weights_with_the_same_values(objective: Objective) -> None:
    """Sums over chunks are equal bit for bit, also for the start token, which every caption contains."""
    half, whole = halved(objective), halved(objective).float()
    for p in whole.parameters():
        p.grad_dtype = torch.float32
    assert set_step_gradients(half) == set_step_gradients(whole)
    for (name, p), q in zip(half.named_parameters(), whole.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert p.grad.dtype == torch.float32
        assert torch.equal(p.grad, q.grad), name


@pytest.mark.parametrize("objective", ["bag", "caption"])
def test_models_without_a_text_tower_are_rejected(objective: Objective) -> None:
    with pytest.raises(ValueError, match=f"text_weights=bf16: a model of objective={objective} has no text tower"):
        halve_text_weights(empty_network(replace(CONFIG, objective=objective)))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    captions = [f"{first}{second} {second}{first}" for first in "abcdefghijklm" for second in "nopqrstuvwxyz"]
    return Tokenizer.train(captions, CONFIG.text.vocab_size, CONFIG.text.context_length)


def test_a_resumed_run_equals_an_uninterrupted_run_bit_for_bit(tmp_path: Path, tokenizer: Tokenizer) -> None:
    network = halved()
    optimizer = make_optimizer(network, HALF)
    folder = CheckpointFolder(str(tmp_path), storage)
    for step in range(4):
        if step == 2:
            folder.save(Checkpoint(Model(network, tokenizer), optimizer.state_dict(), Progress(step, 0.0)))
        set_step_gradients(network, step)
        optimizer_step(network, optimizer, 1e-3)

    checkpoint = folder.latest()
    assert checkpoint is not None
    resumed = checkpoint.model.network.train()
    halve_text_weights(resumed)
    assert isinstance(resumed, CLIP)
    resumed_optimizer = make_optimizer(resumed, HALF)
    resumed_optimizer.load_state_dict(checkpoint.optimizer)
    for step in (2, 3):
        set_step_gradients(resumed, step)
        optimizer_step(resumed, resumed_optimizer, 1e-3)
    for (name, p), q in zip(network.named_parameters(), resumed.parameters(), strict=True):
        assert p.dtype == q.dtype
        assert torch.equal(p, q), name


def test_a_saved_model_is_half_the_size_and_loads_in_float32(tmp_path: Path, tokenizer: Tokenizer) -> None:
    network = halved()
    model_folder.save(Model(network, tokenizer), tmp_path)
    loaded, _, tokenize = pipeline.load(tmp_path)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    for p, q in zip(network.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(p.float(), q)
    assert loaded.encode_text(tokenize(["ab ba"])).dtype == torch.float32
    num_bytes = sum(p.numel() * p.element_size() for p in network.parameters())
    assert num_bytes < (tmp_path / "model.safetensors").stat().st_size < num_bytes + 20_000
