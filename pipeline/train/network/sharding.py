"""Shard weights, gradients and the optimizer's moments over the ranks (ZeRO, Rajbhandari et al. 2020).

torch's `fully_shard` (FSDP2) shards each block, configured here for gradient caching. A step gathers the weights of a
block once, when the block's first chunk needs them, and keeps them until the step ends. Gradients are also kept whole
until then; each block's gradients are summed and sharded by one reduce-scatter. A step with any number of chunks sends
as many bytes as one all-reduce of the gradients. Ranks may have different numbers of chunks, because they do not
synchronise between a tower's first chunk and the end of the step.

    bytes per float32 parameter with Adam, on N ranks       between steps    during a step
    unsharded                                               16               16
    sharded                                                 16 / N           8 + 12 / N

Resharding the weights after each chunk would also save most of the 8 bytes. But every chunk would then send the weights
three times and its gradients once, and all ranks would need the same number of chunks.

The log of the logit scale is not sharded: every rank holds it, and its gradient is the same on all ranks.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from pipeline.model.objectives.clip import CLIP
from pipeline.model.objectives.loss import Group, num_ranks
from pipeline.model.objectives.networks import Network, empty_network
from pipeline.model.weights.model_folder import Model
from pipeline.train.network.blocks import blocks


def shard(network: Network, group: Group | None = None) -> None:
    """Shard a network in place; on a single rank, do nothing. The weights must be the same on all ranks.

    Call it after the blocks are compiled or checkpointed and before the optimizer is created.
    """
    if num_ranks(group) == 1:
        return
    ranks = group or dist.group.WORLD
    assert ranks is not None
    mesh = DeviceMesh.from_group(ranks, next(network.parameters()).device.type)
    scalars = {p for p in network.parameters() if p.ndim == 0}
    for module in (*blocks(network), network):
        sharded = fully_shard(module, mesh=mesh, reshard_after_forward=False, ignored_params=scalars)
        # Sum, do not average: each rank's gradient is already its part of the gradient of the global mean
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)
    _keep_whole(sharded, True)
    sharded.set_manual_backward_finalization(True)
    for name in ("encode_image", "encode_text") if isinstance(network, CLIP) else ("summed_loss",):
        register_fsdp_forward_method(network, name)


def begin_step(network: nn.Module) -> None:
    """Reset the gradients and, if the weights are sharded, start to gather the weights on all ranks.

    Also resets the state that FSDP2 may retain from a step that raised an error.
    """
    if isinstance(network, FSDPModule) and not all(isinstance(p, DTensor) for p in network.parameters() if p.ndim):
        network.reset_iter_state()
    network.zero_grad(set_to_none=True)
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.unshard(async_op=True)


def ranks_lacking(network: nn.Module, lacks: bool, group: Group | None) -> int:
    """Count the ranks that cannot finish their step; if there are any, all ranks discard their gathered weights.

    Args:
        network: the network in training.
        lacks: whether this rank cannot finish its step.
        group: the ranks.
    """
    if num_ranks(group) == 1:
        return int(lacks)
    num_lacking = torch.tensor(int(lacks), device=next(network.parameters()).device)
    dist.all_reduce(num_lacking, group=group)
    if num_lacking and isinstance(network, FSDPModule):
        network.reset_iter_state()
    return int(num_lacking)


def sum_into_shards(network: FSDPModule) -> None:
    """End a step: set `.grad` to this rank's shards of the gradients summed over all ranks, and reshard the weights."""
    _keep_whole(network, False)
    network.finalize_backward()
    _keep_whole(network, True)


def _keep_whole(network: FSDPModule, whole: bool) -> None:
    network.set_requires_gradient_sync(not whole)
    network.set_reshard_after_backward(not whole)


def whole_model(model: Model) -> Model:
    """The unsharded model, on the CPU; all ranks must call this, and only the first rank receives the values.

    A model that is not sharded is returned unchanged.
    """
    sharded: nn.Module = model.network
    if not isinstance(sharded, FSDPModule):
        return model
    network = empty_network(model.network.config)
    weights = _gathered(sharded.state_dict())
    if weights:
        network.load_state_dict(weights, assign=True)
    return Model(network, model.tokenizer)


def whole_optimizer(optimizer: Optimizer) -> dict[str, Any]:
    """The unsharded state of an optimizer, on the CPU; all ranks must call this, and only the first receives moments.

    If the optimizer's weights are not sharded, its state is returned unchanged.
    """
    state = optimizer.state_dict()
    if not any(isinstance(p, DTensor) for group in optimizer.param_groups for p in group["params"]):
        return state
    return state | {"state": {number: _gathered(moments) for number, moments in state["state"].items()}}


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load a state from `whole_optimizer` into an optimizer; if the weights are sharded, each rank loads its shards."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    own_state = {
        number: {name: _own_shard(value, parameters[number]) for name, value in moments.items()}
        for number, moments in state["state"].items()
    }
    optimizer.load_state_dict(state | {"state": own_state})


def total_norm(gradients: Iterable[Tensor]) -> float:
    """Euclidean norm of the whole gradient; individual gradients may be sharded."""
    by_sharded: dict[bool, list[Tensor]] = {False: [], True: []}
    for gradient in gradients:
        by_sharded[isinstance(gradient, DTensor)].append(gradient)
    norms = [torch.nn.utils.get_total_norm(tensors) for tensors in by_sharded.values()]
    return math.hypot(*(float(norm.full_tensor() if isinstance(norm, DTensor) else norm) for norm in norms))


def _gathered(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gather tensors one at a time, so that no device ever holds all of them; empty on all ranks but the first."""
    is_first = not dist.is_initialized() or dist.get_rank() == 0
    gathered = {}
    for name, value in values.items():
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        if is_first:
            gathered[name] = whole.detach().cpu()
    return gathered


def _own_shard(value: Tensor, parameter: Tensor) -> Tensor:
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    value = value.to(parameter.device)
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
