"""Apply compilation, activation checkpointing and sharding to a network, in the required order."""

import torch

from pipeline.model.objectives.loss import Group
from pipeline.model.objectives.networks import Network
from pipeline.train.config import TrainConfig
from pipeline.train.network.blocks import checkpoint_activations
from pipeline.train.network.compiled_blocks import compile_blocks
from pipeline.train.network.sharding import shard


def prepare(network: Network, config: TrainConfig, group: Group | None = None) -> None:
    """Compile, checkpoint and shard a network in place, as configured; create its optimizer afterwards.

    Sharding is outermost, because a block's weights must be gathered before the block runs. Checkpointing recomputes
    the compiled block. The function also turns off TF32 for this process. With its 10-bit mantissa, which cuDNN's
    convolutions use by default, gradients would depend on how a batch is divided into chunks.

    Args:
        network: the network on its device, with the same weights on all ranks.
        config: the options `compile`, `checkpoint_activations` and `shard_weights`.
        group: the ranks that share the weights; by default all ranks, if torch.distributed is initialised.

    Raises:
        ValueError: torch.compile does not work on this machine.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    if config.compile:
        compile_blocks(network, network.config.text.context_length)
    if config.checkpoint_activations:
        checkpoint_activations(network)
    if config.shard_weights:
        shard(network, group)
