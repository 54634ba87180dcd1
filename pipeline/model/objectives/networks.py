"""The rival objectives of figure 2, each a network over the same image tower.

| objective | network | text | zero-shot score of a prompt for an image |
|---|---|---|---|
| contrastive | CLIP | causal transformer | cosine |
| contrastive-bag | CLIP | mean of embeddings | cosine |
| bag | BagPredictor | unique words to predict | mean log-probability of its unique words |
| caption | Captioner | tokens to predict, in order | log-likelihood |

Over several templates, cosines are taken with the normalised mean of the prompts' embeddings (section 3.1.4); the other
scores are averaged.
"""

import torch

from pipeline.model.config import ModelConfig
from pipeline.model.objectives.bag_of_words import BagPredictor
from pipeline.model.objectives.caption_model import Captioner
from pipeline.model.objectives.clip import CLIP

Separable = BagPredictor | Captioner
"""Networks whose loss is a mean over the pairs: what a pair adds to it does not depend on the others."""
Network = CLIP | Separable


def network_for(config: ModelConfig) -> Network:
    """A freshly initialised network of the configuration's objective."""
    if config.objective == "bag":
        return BagPredictor(config)
    if config.objective == "caption":
        return Captioner(config)
    return CLIP(config)


def empty_network(config: ModelConfig) -> Network:
    """A network on the meta device, for weights to fill: quick, because no initial value is computed."""
    with torch.device("meta"):
        network = network_for(config)
    saved = set(network.state_dict())
    assert all(name in saved for name, _ in network.named_buffers()), "a buffer that is not saved would stay empty"
    return network
