"""The contrastive loss over the global batch and its exact gradient, on one rank or many (section 2.3, figure 3).

Each rank compares its own images with all texts and its own texts with all images, so a rank holds two n x N matrices
of similarities, where n is its share of the global batch of N. The gradient with respect to the gathered features is
summed over ranks, so that what a feature contributes to the other ranks' rows comes back to the rank that owns it.

Shapes: n rows of this rank, N rows of the global batch, E joint embedding.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class LossGradients:
    """The mean loss of the global batch, alike on all ranks, and its gradients, all float32."""

    loss: float
    image_features: Tensor
    """n x E, of this rank's rows."""
    text_features: Tensor
    """n x E, of this rank's rows."""
    logit_scale: Tensor
    """Scalar, of the logarithm of the scale; alike on all ranks, so it must not be summed over them again."""
    accuracy_image_to_text: float
    """Share of the global batch's images that are most similar to their own text."""
    accuracy_text_to_image: float


def contrastive_loss(image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
    """The loss on one process, from normalised features N x E and the logarithm of the scale: a scalar."""
    logits = logit_scale.exp() * image_features @ text_features.T
    labels = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def contrastive_gradients(
    image_features: Tensor, text_features: Tensor, logit_scale: Tensor, local_batch_sizes: list[int], rank: int
) -> LossGradients:
    """Loss and gradients from normalised features n x E of this rank and the logarithm of the scale.

    Args:
        image_features: n x E; rows of an image and its text match.
        text_features: n x E.
        logit_scale: scalar.
        local_batch_sizes: n of each rank; their sum is N.
        rank: this process's place in that list.
    """
    global_batch_size = sum(local_batch_sizes)
    start = sum(local_batch_sizes[:rank])
    own = slice(start, start + local_batch_sizes[rank])
    with torch.enable_grad():
        images = _gather(image_features.detach().float(), local_batch_sizes).requires_grad_()
        texts = _gather(text_features.detach().float(), local_batch_sizes).requires_grad_()
        log_scale = logit_scale.detach().float().requires_grad_()
        labels = torch.arange(own.start, own.stop, device=images.device)
        logits_per_image = log_scale.exp() * images[own] @ texts.T
        logits_per_text = log_scale.exp() * texts[own] @ images.T
        share = F.cross_entropy(logits_per_image, labels, reduction="sum")
        share = (share + F.cross_entropy(logits_per_text, labels, reduction="sum")) / (2 * global_batch_size)
        gradients = torch.autograd.grad(share, (images, texts, log_scale))
    hits = [(logits.argmax(dim=1) == labels).sum() for logits in (logits_per_image, logits_per_text)]
    # One message: feature gradients, then the scale's gradient, loss and hits
    message = torch.cat([*(g.flatten() for g in gradients), share.detach().view(1), torch.stack(hits).float()])
    if len(local_batch_sizes) > 1:
        dist.all_reduce(message)
    num_values = images.numel()
    image_sum, text_sum, rest = message[:num_values], message[num_values : 2 * num_values], message[2 * num_values :]
    return LossGradients(
        loss=rest[1].item(),
        image_features=image_sum.view_as(images)[own],
        text_features=text_sum.view_as(texts)[own],
        logit_scale=rest[0],
        accuracy_image_to_text=rest[2].item() / global_batch_size,
        accuracy_text_to_image=rest[3].item() / global_batch_size,
    )


def _gather(features: Tensor, local_batch_sizes: list[int]) -> Tensor:
    """n x E of each rank -> N x E. Ranks may have different n, which all_gather cannot do, so rows are padded."""
    if len(local_batch_sizes) == 1:
        return features.clone()
    most = max(local_batch_sizes)
    padded = F.pad(features, (0, 0, 0, most - len(features)))
    gathered = [torch.empty_like(padded) for _ in local_batch_sizes]
    dist.all_gather(gathered, padded)
    return torch.cat([rows[:size] for rows, size in zip(gathered, local_batch_sizes, strict=True)])
