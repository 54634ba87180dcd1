"""Tests of how often blocks are compiled and of what the compiled blocks compute.

The inductor backend takes too long for a test; tests/perf/training/compiling.py measures it.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch._dynamo
from torch._dynamo.testing import CompileCounterWithBackend

from pipeline.model.config import Objective
from pipeline.model.towers.image_tower import normalise
from pipeline.train.network.blocks import checkpoint_activations
from pipeline.train.network.compiled_blocks import LENGTH_MULTIPLE, compile_blocks
from pipeline.train.step import gradients
from pipeline.train.step.gradients import Batch, set_gradients
from tests.pipeline.model.models import CONFIG, small_batch
from tests.pipeline.train.ranks import Case, network_of, state_after

# torch itself reads .grad while it compiles
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


@pytest.fixture(autouse=True)
def _reset_dynamo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(gradients, "normalise", lambda images: normalise(images).double())
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_many_batches_compile_few_times() -> None:
    """The batches differ in size, last chunk and length; captions have lengths of 8 and 12 tokens, images have one.

    Each length is compiled with a graph and without, and possibly again for a single sample.
    """
    case = Case((12,), 5, "transformer")
    network, plain = network_of(case), network_of(case)
    counter = CompileCounterWithBackend("eager")
    compile_blocks(network, CONFIG.text.context_length, backend=counter)
    before, counts = counter.frame_count, []
    for seed in range(12):
        batch = Batch(*small_batch(5 + seed, seed))
        chunk_size = 3 + seed % 4
        set_gradients(network, batch, chunk_size=chunk_size, bf16=False, length_multiple=LENGTH_MULTIPLE)
        set_gradients(plain, batch, chunk_size=chunk_size, bf16=False)
        expected = dict(state_after(plain))
        for name, actual in state_after(network):
            torch.testing.assert_close(actual, expected[name], rtol=1e-10, atol=1e-12, msg=name)
        counts.append(counter.frame_count - before)
    assert 6 <= counts[-1] <= 12
    assert counts[-1] == counts[7], "still compiling"


def test_compiled_blocks_with_half_precision_and_checkpointing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks run in the modes of a step: autocast, and attention as plain matrix products."""
    monkeypatch.setattr(gradients, "normalise", normalise)
    case = Case((12,), 5, "transformer", dtype=torch.float32)
    network, plain = network_of(case), network_of(case)
    compile_blocks(network, CONFIG.text.context_length, backend="eager")
    checkpoint_activations(network)
    batch = Batch(*small_batch(12))
    set_gradients(network, batch, chunk_size=5, bf16=True, length_multiple=CONFIG.text.context_length)
    set_gradients(plain, batch, chunk_size=5, bf16=True, length_multiple=CONFIG.text.context_length)
    expected = dict(state_after(plain))
    for name, actual in state_after(network):
        torch.testing.assert_close(actual, expected[name], rtol=1e-6, atol=1e-7, msg=name)


@pytest.mark.parametrize(("tower", "objective"), [("resnet", "contrastive"), ("convnext", "caption")])
def test_resnets_and_convnext(tower: str, objective: Objective) -> None:
    """Blocks with batch norms are not compiled."""
    case = Case((8,), 4, tower, objective, norm_group_size=4 if tower == "resnet" else None)
    network, plain = network_of(case), network_of(case)
    compile_blocks(network, CONFIG.text.context_length, backend="aot_eager")
    batch = Batch(*small_batch(8))
    for each in (network, plain):
        set_gradients(
            each, batch, chunk_size=4, bf16=False, norm_group_size=case.norm_group_size, length_multiple=LENGTH_MULTIPLE
        )
    expected = dict(state_after(plain))
    for name, actual in state_after(network):
        torch.testing.assert_close(actual, expected[name], rtol=1e-10, atol=1e-12, msg=name)


def test_a_missing_compiler_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    network = network_of(Case((4,), 4, "transformer"))
    with pytest.raises(
        ValueError, match=r"train\.compile=true: torch\.compile does not work on this machine .* C\+\+ compiler"
    ):
        compile_blocks(network, 12)
