"""Set the initial values of the paper's image towers, which differ from timm's.

The released code sets a few parameters and leaves the others to torch's defaults, which `reset_parameters` sets:
convolutions and linear layers are uniform within +-fan_in^-0.5, and norms have gain one and bias zero. The joint
query, key and value projection of an attention layer is uniform as in Glorot and Bengio (2010).
"""

from timm.layers.attention import Attention
from timm.layers.attention_pool2d import AttentionPool2d
from timm.models import ByobNet, VisionTransformer
from torch import nn


def is_paper_architecture(architecture: str) -> bool:
    """Whether timm's architecture is one of the paper's image towers, of any size."""
    return architecture.endswith("_clip") or "_clip_quickgelu_" in architecture


def initialise(trunk: nn.Module) -> None:
    """Overwrite every parameter and buffer of an image tower of the paper; they may be uninitialised memory.

    Raises AssertionError for any other network.
    """
    for module in trunk.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.LayerNorm | nn.BatchNorm2d):
            module.reset_parameters()
    if isinstance(trunk, VisionTransformer):
        _initialise_transformer(trunk)
    else:
        assert isinstance(trunk, ByobNet)
        _initialise_resnet(trunk)


def _initialise_transformer(trunk: VisionTransformer) -> None:
    std = trunk.embed_dim**-0.5
    for name in ("cls_token", "pos_embed"):
        nn.init.normal_(trunk.get_parameter(name), std=std)
    for module in trunk.modules():
        if isinstance(module, Attention):
            nn.init.xavier_uniform_(module.qkv.weight)
            nn.init.zeros_(module.qkv.bias)
            nn.init.zeros_(module.proj.bias)


def _initialise_resnet(trunk: ByobNet) -> None:
    for name, gain in trunk.named_parameters():
        if name.endswith("conv3_1x1.bn.weight"):  # the last norm of a block, which then starts as its shortcut
            nn.init.zeros_(gain)
    pool = trunk.get_submodule("head")
    assert isinstance(pool, AttentionPool2d)
    std = pool.in_features**-0.5
    for name in ("q.weight", "k.weight", "v.weight", "pos_embed"):
        nn.init.normal_(pool.get_parameter(name), std=std)
