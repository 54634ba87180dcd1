"""Weights, gradients and the optimizer's moments in shards, one for each rank (ZeRO, Rajbhandari et al. 2020).

torch's `fully_shard` (FSDP2) does it, block by block, here in a way that suits gradient caching: a step gathers each
block's weights once, when its first chunk comes to them, and they stay whole until it ends. So do the gradients, which
then are summed over the ranks and cut up, in one message for each block. However many chunks a step has, it sends what
an all-reduce of the gradients would, and ranks may have different numbers of chunks: between a tower's first chunk and
the end nobody waits for anybody.

    bytes of a float32 parameter with Adam, on N ranks      between steps    in a step
    whole on each rank                                      16               16
    in shards                                               16 / N           8 + 12 / N

Cutting the weights up again after each chunk would save most of the 8, too; but then every chunk would send them three
times and its gradients once, and all ranks would have to have the same number of chunks.

The logarithm of the scale is in no shard: every rank has it, and its gradient is alike on all of them.
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
    """Cut up a network's weights in place, which are alike on all ranks; on a single rank nothing is done.

    Before its optimizer is made, and after its blocks were compiled or checkpointed.
    """
    if num_ranks(group) == 1:
        return
    ranks = group or dist.group.WORLD
    assert ranks is not None
    mesh = DeviceMesh.from_group(ranks, next(network.parameters()).device.type)
    scalars = {p for p in network.parameters() if p.ndim == 0}
    for module in (*blocks(network), network):
        part = fully_shard(module, mesh=mesh, reshard_after_forward=False, ignored_params=scalars)
        # Sums, because each rank's gradient already is a share of the global mean's
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)
    _keep_whole(part, True)
    part.set_manual_backward_finalization(True)
    for name in ("encode_image", "encode_text") if isinstance(network, CLIP) else ("summed_loss",):
        register_fsdp_forward_method(network, name)


def begin_step(network: nn.Module) -> None:
    """Forget gradients, and where weights are in shards begin to gather them: all ranks do, each for all of its chunks.

    A step that an error has ended may have left anything.
    """
    if isinstance(network, FSDPModule) and not all(isinstance(p, DTensor) for p in network.parameters() if p.ndim):
        network.reset_iter_state()
    network.zero_grad(set_to_none=True)
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.unshard(async_op=True)


def ranks_lacking(network: nn.Module, lacks: bool, group: Group | None) -> int:
    """How many ranks cannot go on with their step. Where any cannot, all of them forget what shards were gathered.

    Args:
        network: that is trained.
        lacks: whether this rank is one of them.
        group: the ranks.
    """
    if num_ranks(group) == 1:
        return int(lacks)
    message = torch.tensor(int(lacks), device=next(network.parameters()).device)
    dist.all_reduce(message, group=group)
    if message and isinstance(network, FSDPModule):
        network.reset_iter_state()
    return int(message)


def sum_into_shards(network: FSDPModule) -> None:
    """End a step: `.grad` becomes this rank's shards of the sums over all ranks, and weights are shards again."""
    _keep_whole(network, False)
    network.finalize_backward()
    _keep_whole(network, True)


def _keep_whole(network: FSDPModule, whole: bool) -> None:
    network.set_requires_gradient_sync(not whole)
    network.set_reshard_after_backward(not whole)


def whole_model(model: Model) -> Model:
    """The model as it is without shards, on the CPU. All ranks take part; others than the first get no values.

    One that is not in shards is returned as it is.
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
    """State of an optimizer as it is without shards, on the CPU. All ranks take part; others than the first get no
    moments. That of one without shards is returned as it is."""
    state = optimizer.state_dict()
    if not any(isinstance(p, DTensor) for group in optimizer.param_groups for p in group["params"]):
        return state
    return state | {"state": {number: _gathered(moments) for number, moments in state["state"].items()}}


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Give an optimizer the state that `whole_optimizer` found, its shards of it where weights are in shards."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    own = {
        number: {name: _own_part(value, parameters[number]) for name, value in moments.items()}
        for number, moments in state["state"].items()
    }
    optimizer.load_state_dict(state | {"state": own})


def total_norm(gradients: Iterable[Tensor]) -> float:
    """Euclidean norm of a whole gradient, of which some parts may be in shards."""
    parts: dict[bool, list[Tensor]] = {False: [], True: []}
    for gradient in gradients:
        parts[isinstance(gradient, DTensor)].append(gradient)
    norms = [torch.nn.utils.get_total_norm(part) for part in parts.values()]
    return math.hypot(*(float(norm.full_tensor() if isinstance(norm, DTensor) else norm) for norm in norms))


def _gathered(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One after the other, so that no rank ever has all of them on its device; empty on others than the first."""
    is_first = not dist.is_initialized() or dist.get_rank() == 0
    found = {}
    for name, value in values.items():
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        if is_first:
            found[name] = whole.detach().cpu()
    return found


def _own_part(value: Tensor, parameter: Tensor) -> Tensor:
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    value = value.to(parameter.device)
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
