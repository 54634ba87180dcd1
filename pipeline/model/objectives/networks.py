"""Build the network of an objective of figure 2; all of them have the same image tower.

| objective | network | text | zero-shot score of a prompt for an image |
|---|---|---|---|
| contrastive | CLIP | causal transformer | cosine |
| contrastive-bag | CLIP | mean of embeddings | cosine |
| bag | BagPredictor | unique words to predict | mean log-probability of its unique words |
| caption | Captioner | tokens to predict, in order | log-likelihood |

With several templates, a cosine is taken with the normalised mean of the prompts' embeddings (section 3.1.4). The other
scores are averaged over the templates.
"""

import torch

from pipeline.model.config import ModelConfig
from pipeline.model.objectives.bag_of_words import BagPredictor
from pipeline.model.objectives.caption_model import Captioner
from pipeline.model.objectives.clip import CLIP

PerPairNetwork = BagPredictor | Captioner
"""Networks whose loss is a sum of one term per pair, each independent of the other pairs."""
Network = CLIP | PerPairNetwork


def network_for(config: ModelConfig) -> Network:
    """A newly initialised network for the configuration's objective."""
    if config.objective == "bag":
        return BagPredictor(config)
    if config.objective == "caption":
        return Captioner(config)
    return CLIP(config)


def empty_network(config: ModelConfig) -> Network:
    """A network on the meta device, ready to load weights. It is quick to build: no initial values are computed."""
    with torch.device("meta"):
        network = network_for(config)
    saved_names = set(network.state_dict())
    assert all(name in saved_names for name, _ in network.named_buffers()), "a buffer that is not saved stays empty"
    return network
