"""What makes a network fit its devices, in the order in which these can be put together."""

import torch

from pipeline.model.objectives.loss import Group
from pipeline.model.objectives.networks import Network
from pipeline.train.config import TrainConfig
from pipeline.train.network.blocks import checkpoint_activations
from pipeline.train.network.compiled_blocks import compile_blocks
from pipeline.train.network.sharding import shard


def prepare(network: Network, config: TrainConfig, group: Group | None = None) -> None:
    """Compile, checkpoint and shard a network in place, as far as is asked for; its optimizer is to be made afterwards.

    Shards are outermost, because a block's weights must be there when it begins; what a checkpoint computes again is
    the compiled block. Float32 is float32 in this process from here on: GPUs would else multiply it with the 10 bits of
    TF32, convolutions even without being asked, and the cut of a batch would show in its gradient.

    Args:
        network: on its device, alike on all ranks.
        config: decides what is done.
        group: the ranks that share the weights; those of torch.distributed, where it is initialised.

    Raises:
        ValueError: nothing can be compiled here.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    if config.compile:
        compile_blocks(network, network.config.text.context_length)
    if config.checkpoint_activations:
        checkpoint_activations(network)
    if config.shard_weights:
        shard(network, group)
