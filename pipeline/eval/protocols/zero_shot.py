"""Classify images zero-shot (CLIP paper, sections 3.1.2 and 3.1.4), with a rule for each objective.

Contrastive: the direction of a class is the mean of its prompts' normalised embeddings, normalised again. An image is
assigned the class whose direction has the largest cosine similarity. Bag-of-words prediction: the class whose prompts
have the largest mean log-probability of their unique words, averaged over templates (`BagPredictor`). Caption: the
class whose prompts have the largest log-likelihood, averaged over templates (`Captioner.score_captions`; these scores
are used as logits without scaling).

Shape legend: N images, C classes, T templates, E joint embedding.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def build_classifier(prompt_features: Tensor) -> Tensor:
    """Compute the class directions: float32 [C, E], each of length 1.

    Args:
        prompt_features: unnormalised text embeddings of every class in every template, [C, T, E].
    """
    assert prompt_features.ndim == 3, prompt_features.shape
    return F.normalize(F.normalize(prompt_features.float(), dim=-1).mean(dim=1), dim=-1)


def class_probabilities(image_features: Tensor, classifier: Tensor, logit_scale: float) -> Tensor:
    """Compute the probability of each class for each image: float32 [N, C], rows sum to 1.

    Args:
        image_features: unnormalised image embeddings, [N, E].
        classifier: class directions of `build_classifier`, [C, E].
        logit_scale: the model's factor on cosine similarities, already exponentiated. It sharpens the probabilities
            but does not change their order.
    """
    logits_NC = logit_scale * F.normalize(image_features.float(), dim=-1) @ classifier.T  # noqa: N806
    return logits_NC.softmax(dim=-1)


def bag_probabilities(image_features: Tensor, prompt_features: Tensor) -> Tensor:
    """Compute the probability of each class under bag-of-words prediction: float32 [N, C], rows sum to 1.

    Args:
        image_features: output of `BagPredictor.encode_image`, [N, E + 1].
        prompt_features: output of `BagPredictor.encode_text` for every class in every template, [C, T, E + 1].
    """
    assert prompt_features.ndim == 3, prompt_features.shape
    return (image_features.float() @ prompt_features.float().mean(dim=1).T).softmax(dim=-1)
