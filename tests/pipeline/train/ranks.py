"""Run training steps on four local gloo processes, each started as `python -m tests.pipeline.train.ranks`.

The processes run all cases in turn. Each case uses the first ranks, one per share.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from pipeline.model.config import ImageTowerConfig, Objective
from pipeline.model.objectives.clip import CLIP
from pipeline.model.objectives.networks import Network, network_for
from pipeline.model.tokenizer.tokenizer import Tokenizer
from pipeline.model.towers.image_tower import normalise
from pipeline.model.weights.model_folder import Model
from pipeline.train.config import TrainConfig
from pipeline.train.network.blocks import blocks, checkpoint_activations
from pipeline.train.network.compiled_blocks import LENGTH_MULTIPLE, compile_blocks
from pipeline.train.network.sharding import load_optimizer, shard, whole_model, whole_optimizer
from pipeline.train.optimizer.optimizer import gradient_norm, make_optimizer, optimizer_step
from pipeline.train.step import gradients
from pipeline.train.step.chunks import Chunks
from pipeline.train.step.gradients import Batch, StepResult, set_gradients
from pipeline.train.step.graph_budget import Budget
from tests import gloo
from tests.pipeline.model.models import CONFIG, small_batch

TIMEOUT_SECONDS = 200
WORLD_SIZE = 4
TOWERS = {
    "convnext": replace(CONFIG.image, options={**CONFIG.image.options, "drop_rate": 0.0}),
    "transformer": ImageTowerConfig(
        architecture="vit_tiny_patch16_224",
        image_size=32,
        options={"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2},
    ),
    "resnet": ImageTowerConfig(
        architecture="resnet18",
        image_size=32,
        options={"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16], "stem_width": 8},
    ),
}
"""Small image towers; only the last has batch norms."""


class Case(NamedTuple):
    """The settings of one step."""

    shares: tuple[int, ...]
    """The number of rows of each rank."""
    chunk_size: int
    tower: str = "convnext"
    objective: Objective = "contrastive"
    dtype: torch.dtype = torch.float64
    budget_bytes: int = 0
    norm_group_size: int | None = None
    lacking_rank: int | None = None
    """The rank that runs out of memory in its first attempt."""
    lacks_forward: bool = False
    """Whether memory runs out in a forward pass rather than in a backward pass."""
    poisoned: int | None = None
    """The rank whose text features are not finite."""
    sharded: bool = False
    compiled: bool = False
    """Whether blocks are compiled, and activation checkpointing is on as well."""


CASES = (
    *(Case(shares, 2) for shares in ((12,), (6, 6), (1, 4, 7), (5, 4, 2, 1))),
    *(Case((5, 7), chunk_size) for chunk_size in (1, 3, 100)),
    *(Case((5, 7), 3, "transformer", dtype=dtype) for dtype in (torch.float64, torch.float32)),
    Case((5, 7), 2, "transformer", budget_bytes=10**9),
    *(Case(shares, 5, "resnet", norm_group_size=4) for shares in ((12,), (8, 4), (4, 4, 4))),
    Case((8, 4), 5, "resnet", "caption", norm_group_size=4),
    *(Case((8, 4), 3, objective=objective) for objective in ("bag", "caption")),
    Case((5, 7), 3, "transformer", lacking_rank=1),
    Case((5, 7), 3, "transformer", lacking_rank=1, lacks_forward=True),
    Case((5, 7), 3, objective="caption", lacking_rank=0),
    Case((8, 4), 5, "resnet", norm_group_size=4, poisoned=1),
    *(Case(shares, 2, "transformer", sharded=True) for shares in ((5, 7), (1, 4, 7))),
    Case((1, 4, 7), 2, "transformer", sharded=True, budget_bytes=10**9),
    Case((5, 7), 3, "transformer", dtype=torch.float32, sharded=True, compiled=True),
    Case((8, 4), 5, "resnet", norm_group_size=4, sharded=True),
    *(Case((5, 7), 3, "transformer", lacking_rank=1, lacks_forward=forward, sharded=True) for forward in (False, True)),
    *(Case((8, 4), 3, objective=objective, sharded=True) for objective in ("bag", "caption")),
)


RUN = (Case((4, 4, 4), 2, "transformer", sharded=True), Case((5, 7), 3, "transformer", sharded=True))
"""A run of `NUM_STEPS` steps on three ranks, resumed for as many steps on two ranks."""
NUM_STEPS = 2
TOKENIZER = Tokenizer.train(["unused"], 600, CONFIG.text.context_length)


def network_of(case: Case) -> Network:
    """The case's network in training mode, always with the same weights."""
    torch.manual_seed(0)
    config = replace(CONFIG, objective=case.objective, image=TOWERS[case.tower])
    return network_for(config).to(case.dtype).train()


def prepare_network(case: Case, network: Network, group: dist.ProcessGroup | None) -> None:
    """Compile and shard the network as `pipeline.train.network.prepare` does, but with the fast eager backend."""
    if case.compiled:
        compile_blocks(network, CONFIG.text.context_length, backend="eager")
        checkpoint_activations(network)
    if case.sharded:
        shard(network, group)


def take_step(case: Case, network: Network, rank: int, group: dist.ProcessGroup | None) -> StepResult:
    """Compute the case's gradients on this rank."""
    start = sum(case.shares[:rank])
    share = Batch(*(part[start : start + case.shares[rank]] for part in small_batch(sum(case.shares))))
    if rank == case.poisoned:
        assert isinstance(network, CLIP)
        network.text_tower.register_forward_hook(lambda _tower, _inputs, features: features * torch.inf)
    budget = Budget(case.budget_bytes)
    if case.lacking_rank is not None:
        chunks = Chunks(case.chunk_size, case.budget_bytes, norm_group_size=None, bf16=False)
        if case.lacking_rank == rank:
            lack_memory_once(network, forward=case.lacks_forward)
        return chunks.set_gradients(network, share, group)
    for _ in range(2 if case.budget_bytes else 1):  # the first step measures graphs, the second keeps them
        result = set_gradients(
            network, share, chunk_size=case.chunk_size, bf16=False, norm_group_size=case.norm_group_size,
            length_multiple=LENGTH_MULTIPLE if case.compiled else 1, budget=budget, group=group,
        )  # fmt: skip
    return result


def lack_memory_once(network: Network, *, forward: bool) -> None:
    """Make the first backward pass fail or, if `forward`, the first forward pass of the last text block."""
    backward = Tensor.backward

    def fails(*_arguments: object) -> None:
        if forward:
            hook.remove()
        Tensor.backward = backward  # type: ignore[method-assign]
        raise torch.OutOfMemoryError("out of memory")

    if forward:
        assert isinstance(network, CLIP)
        hook = blocks(network.text_tower)[-1].register_forward_pre_hook(fails)
    else:
        Tensor.backward = fails  # type: ignore[method-assign]


class Trained(NamedTuple):
    """The state after some steps."""

    model: Model
    optimizer: Optimizer
    norms: list[float]
    """The gradient norm of each step."""


def train(
    case: Case, rank: int = 0, group: dist.ProcessGroup | None = None, saved: dict[str, Any] | None = None
) -> Trained:
    """Take `NUM_STEPS` steps, from the initial weights or from a saved state."""
    network = network_of(case)
    if saved:
        network.load_state_dict(saved["weights"])
    prepare_network(case, network, group)
    optimizer = make_optimizer(network, TrainConfig())
    if saved:
        load_optimizer(optimizer, saved["optimizer"])
    norms = []
    for _ in range(NUM_STEPS):
        take_step(case, network, rank, group)
        norms.append(gradient_norm(network))
        optimizer_step(network, optimizer, 1e-3)
    return Trained(Model(network, TOKENIZER), optimizer, norms)


def num_state_bytes(trained: Trained) -> int:
    """Bytes of weights, gradients and moments on this rank."""
    moments = [value for state in trained.optimizer.state.values() for value in state.values()]
    tensors = [*trained.model.network.parameters(), *moments]
    tensors += [p.grad for p in trained.model.network.parameters() if p.grad is not None]
    own = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in own}.values())


def _train_and_resume(rank: int, groups: list[dist.ProcessGroup], folder: Path) -> dict[str, Any]:
    """Execute RUN; return norms and bytes of both parts and, on the first rank, the final weights and moments."""
    results: dict[str, Any] = {"norms": [], "bytes": []}
    saved = None
    for case in RUN:
        if rank < len(case.shares):
            trained = train(case, rank, groups[len(case.shares) - 1], saved)
            results["norms"] += trained.norms
            results["bytes"].append(num_state_bytes(trained))
            whole = {
                "weights": whole_model(trained.model).network.state_dict(),
                "optimizer": whole_optimizer(trained.optimizer),
            }
            if rank == 0:
                torch.save(whole, folder / "saved.pt")
                results |= whole
        dist.barrier()
        saved = torch.load(folder / "saved.pt", weights_only=True)
    return results


def state_after(network: Network) -> Iterator[tuple[str, Tensor]]:
    """The gradients of a network and the statistics of its batch norms."""
    for name, p in network.named_parameters():
        if p.grad is not None:
            yield name, p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad
    yield from network.named_buffers()


def run_ranks(folder: Path) -> list[tuple[list[dict[str, Tensor]], dict[str, Any]]]:
    """The results of each rank, for each case and for RUN; empty for cases without this rank."""
    gloo.run_ranks(__name__, WORLD_SIZE, [folder], TIMEOUT_SECONDS)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD_SIZE)]


def normalise_to(dtype: torch.dtype) -> None:
    gradients.normalise = lambda images: normalise(images).to(dtype)  # type: ignore[attr-defined]


def _main(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", rank=rank, world_size=WORLD_SIZE)
    groups = [cast(dist.ProcessGroup, dist.new_group(list(range(size + 1)))) for size in range(WORLD_SIZE)]
    case_results: list[dict[str, Tensor]] = []
    for case in CASES:
        case_results.append({})
        if rank < len(case.shares):
            normalise_to(case.dtype)
            network = network_of(case)
            prepare_network(case, network, groups[len(case.shares) - 1])
            result = take_step(case, network, rank, groups[len(case.shares) - 1])
            case_results[-1] |= dict(state_after(network))
            case_results[-1]["loss"] = torch.tensor(result.loss, dtype=torch.float64)
            if result.accuracy_image_to_text is not None:
                accuracies = (result.accuracy_image_to_text, result.accuracy_text_to_image)
                case_results[-1]["accuracies"] = torch.tensor(accuracies)
    normalise_to(torch.float64)
    torch.save((case_results, _train_and_resume(rank, groups, folder)), folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    _main(int(sys.argv[1]), Path(sys.argv[2]))
