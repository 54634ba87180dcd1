"""What makes a network fit its devices, in the order in which these can be put together."""

from pipeline.model.loss import Group
from pipeline.model.objectives import Network
from pipeline.train.blocks import checkpoint_activations
from pipeline.train.compiling import compile_blocks
from pipeline.train.config import TrainConfig
from pipeline.train.sharding import shard


def fit(network: Network, config: TrainConfig, group: Group | None = None) -> None:
    """Compile, checkpoint and shard a network in place, as far as is asked for; its optimizer is to be made afterwards.

    Shards are outermost, because a block's weights must be there when it begins; what a checkpoint computes again is
    the compiled block.

    Args:
        network: on its device, alike on all ranks.
        config: decides what is done.
        group: the ranks that share the weights; those of torch.distributed, where it is initialised.

    Raises:
        ValueError: nothing can be compiled here.
    """
    if config.compile:
        compile_blocks(network, network.config.text.context_length)
    if config.checkpoint_activations:
        checkpoint_activations(network)
    if config.shard_weights:
        shard(network, group)
