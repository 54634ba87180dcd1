"""Store the weights of text towers in bfloat16 (section 2.5: half precision, stochastically rounded)."""

import torch
from torch import nn

from pipeline.model.objectives.clip import CLIP
from pipeline.model.objectives.networks import Network


def halve_text_weights(network: Network) -> None:
    """Convert the weights of a text tower's linear layers and token embedding to bfloat16: 2 bytes each instead of 4.

    The other weights, less than 1 percent, stay float32: gains are near one, where the spacing of bfloat16 is too
    coarse for the optimizer's steps. Gradients stay float32, so sums over chunks and ranks are as precise as with
    float32 weights. The optimizer must round stochastically (bf16_adam.py). Weights already in bfloat16 do not change.

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
