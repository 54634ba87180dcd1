"""Text towers whose weights are held in bfloat16 (section 2.5: half precision, stochastically rounded)."""

import torch
from torch import nn

from pipeline.model.objectives.clip import CLIP
from pipeline.model.objectives.networks import Network


def halve_text_weights(network: Network) -> None:
    """Hold a text tower's large weights in bfloat16, those of its linear layers and its table of tokens: 2 bytes each
    instead of 4.

    The rest, less than a hundredth, stays float32: gains lie near one, where the numbers of bfloat16 are too far apart
    for steps of a learning rate. Gradients are float32 as ever, so chunks and ranks add up as they do without. The
    optimizer has to round stochastically (bf16_adam.py); a weight that is in bfloat16 already is not changed.

    Raises:
        ValueError: the network has no text tower.
    """
    if not isinstance(network, CLIP):
        raise ValueError(
            f"train.text_weights=bf16: a model of objective={network.config.objective} has no text tower; "
            "set train.text_weights=fp32"
        )
    for module in network.text_tower.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.data = module.weight.data.to(torch.bfloat16)
            module.weight.grad_dtype = torch.float32
