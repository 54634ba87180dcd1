"""Compute contrastive losses over the global batch and their exact gradients, in tiles, on one rank or many.

The full matrix of logits X = s I T^t is never stored. Each rank computes the rows of its n images against the texts of
all ranks, in two passes over tiles of X:

1. The first pass computes a running maximum and a running sum of exponentials for each row and column. The columns'
   values are then combined over the ranks. The loss follows from these sums.
2. The second pass computes the same tiles again and turns them into G, the gradient of the loss with respect to X.
   dI = s G T is needed on this rank only, dT = s G^t I is summed over the ranks, and d log s is the sum of I * dI.

This takes four matrix products instead of six, and memory for one tile and the features. Nothing overflows at any
scale, because the maximum is always subtracted. The logit of the matching pair is added separately, so that small
losses are exact. SigLIP's loss (Zhai et al. 2023) needs no sums, hence one pass and three products. The tiling follows
FlashAttention (Dao et al. 2022) and Inf-CL (Cheng et al. 2024); the objective is that of section 2.3 and figure 3.

The caller normalises the features. Half-precision features are computed in float32, float64 features in float64.

Shapes: n rows of this rank, N rows of the global batch, E joint embedding, R x C one tile.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

Group = dist.ProcessGroup

TILE = {"cpu": (1024, 1024), "cuda": (4096, 8192)}
"""Rows and columns of a tile, by device."""
_SHARED_EXP_SPAN = 60.0
"""If the maxima of a tile's rows and columns differ by less than this, both directions share one exponential of the
tile. With the tile's maximum subtracted, every exponential that matters is then far above float32's smallest normal
number, exp(-87)."""


@dataclass(frozen=True)
class LossGradients:
    """The mean loss of the global batch, equal on all ranks, and its gradients."""

    loss: Tensor
    """The mean loss, a scalar."""
    image_features: Tensor
    """Gradient of this rank's image features, n x E."""
    text_features: Tensor
    """Gradient of this rank's text features, n x E."""
    log_scale: Tensor
    """Scalar gradient, already summed over the ranks and therefore equal on all of them."""
    bias: Tensor
    """Scalar gradient, summed over the ranks like that of `log_scale`; zero for a loss without a bias."""
    accuracy_image_to_text: float
    """Share of the global batch's images that are more similar to their own text than to any other text."""
    accuracy_text_to_image: float
    """Share of the global batch's texts that are more similar to their own image than to any other image."""


def contrastive_loss(
    image_features: Tensor, text_features: Tensor, log_scale: Tensor, group: Group | None = None
) -> Tensor:
    """The mean cross-entropy of both directions over the global batch: a scalar, equal on all ranks.

    Differentiable once. Each rank gets the gradient of the global mean with respect to its own rows. Gradients of the
    towers' parameters must therefore be summed over the ranks; if they are averaged instead, multiply the loss by the
    number of ranks. The gradient of `log_scale` is equal on all ranks and must not be summed.

    Args:
        image_features: n x E, of length one; n may differ between ranks.
        text_features: n x E, of length one; row i belongs to row i of the images.
        log_scale: scalar, the logarithm of the factor that multiplies the cosine similarities.
        group: the ranks that share the batch; by default all ranks of torch.distributed, if it is initialised.
    """
    loss: Tensor = _Loss.apply(image_features, text_features, log_scale, None, group)
    return loss


def sigmoid_loss(
    image_features: Tensor, text_features: Tensor, log_scale: Tensor, bias: Tensor, group: Group | None = None
) -> Tensor:
    """SigLIP's loss: each of the N x N pairs is classified separately as matching or not. A scalar: their sum over N.

    Arguments and gradients are as in `contrastive_loss`. `bias` is a scalar that is added to all logits.
    """
    loss: Tensor = _Loss.apply(image_features, text_features, log_scale, bias, group)
    return loss


def loss_gradients(
    image_features: Tensor,
    text_features: Tensor,
    log_scale: Tensor,
    bias: Tensor | None = None,
    group: Group | None = None,
) -> LossGradients:
    """Loss, gradients and accuracies together: of `sigmoid_loss` if `bias` is given, else of `contrastive_loss`."""
    with torch.no_grad():
        dtype = torch.promote_types(image_features.dtype, torch.float32)
        ranks = _Ranks.of(group, len(image_features), image_features.device)
        batch = _Batch(
            images=image_features.to(dtype),
            texts=ranks.gather(text_features.to(dtype)),
            scale=log_scale.to(dtype).exp(),
            start=ranks.start,
        )
        return _contrastive(batch, ranks) if bias is None else _sigmoid(batch, bias.to(dtype), ranks)


def num_ranks(group: Group | None = None) -> int:
    """The number of processes that share a batch; one if torch.distributed is not initialised."""
    return dist.get_world_size(group) if dist.is_initialized() else 1


class _Loss(torch.autograd.Function):
    """Computes the gradients together with the loss; the backward pass only scales them."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, texts: Tensor, log_scale: Tensor, bias: Tensor | None, group: Group | None
    ) -> Tensor:
        result = loss_gradients(images, texts, log_scale, bias, group)
        ctx.save_for_backward(result.image_features, result.text_features, result.log_scale, result.bias)
        ctx.dtypes = images.dtype, texts.dtype
        return result.loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        d_images, d_texts, d_log_scale, d_bias = (gradient * saved for saved in ctx.saved_tensors)
        images_dtype, texts_dtype = ctx.dtypes
        needs_bias = ctx.needs_input_grad[3]
        return d_images.to(images_dtype), d_texts.to(texts_dtype), d_log_scale, d_bias if needs_bias else None, None


@dataclass(frozen=True)
class _Batch:
    """The features that one rank compares: its n images and the N texts of all ranks, its own n from row `start` on."""

    images: Tensor
    texts: Tensor
    scale: Tensor
    start: int

    @property
    def own_logits(self) -> Tensor:
        """The logit of each image with its own text: n."""
        own_texts = self.texts[self.start : self.start + len(self.images)]
        return self.scale * (self.images * own_texts).sum(dim=1)

    def tiles(self) -> Iterator[tuple[slice, slice, Tensor, Tensor | None]]:
        """Yield each tile's rows, columns, logits R x C, and a view of the logits of its matching pairs.

        The next tile overwrites the logits. The view is None in a tile without matching pairs.
        """
        num_rows, num_columns = TILE[self.images.device.type]
        buffer = self.images.new_empty(min(num_rows, len(self.images)) * min(num_columns, len(self.texts)))
        for top in range(0, len(self.images), num_rows):
            rows = slice(top, min(top + num_rows, len(self.images)))
            scaled = self.scale * self.images[rows]
            for left in range(0, len(self.texts), num_columns):
                columns = slice(left, min(left + num_columns, len(self.texts)))
                shape = (rows.stop - top, columns.stop - left)
                logits = buffer[: shape[0] * shape[1]].view(shape)
                torch.mm(scaled, self.texts[columns].T, out=logits)
                offset = self.start + top - left
                crosses = -shape[0] < offset < shape[1]
                yield rows, columns, logits, logits.diagonal(offset) if crosses else None


class _RunningSums:
    """The maximum and the log-sum-exp of each row or column, updated tile by tile."""

    def __init__(self, like: Tensor, count: int) -> None:
        self.maxima = like.new_full((count,), torch.finfo(like.dtype).min)
        self._sum = like.new_zeros(count)

    def add(self, where: slice, maxima: Tensor, sums: Tensor, reference: Tensor) -> None:
        """Add a tile's maxima and sums of exp(logit - reference)."""
        before = self.maxima[where]
        after = torch.maximum(before, maxima)
        self._sum[where] = self._sum[where] * (before - after).exp() + sums * (reference - after).exp()
        self.maxima[where] = after

    def combine(self, ranks: "_Ranks") -> None:
        """Add the values of the other ranks."""
        before, self.maxima = self.maxima, ranks.max(self.maxima)
        self._sum = ranks.sum(self._sum * (before - self.maxima).exp())

    @property
    def logsumexp(self) -> Tensor:
        """The log-sum-exp; minus infinity for an empty sum."""
        return self.maxima + self._sum.log()


def _add_tile(rows: _RunningSums, row: slice, columns: _RunningSums, column: slice, logits: Tensor) -> None:
    """Add a tile to the sums of its rows and columns; overwrites the tile."""
    lowest = torch.finfo(logits.dtype).min  # a row may be all minus infinity, whose difference with itself is NaN
    row_maxima, column_maxima = logits.amax(1).clamp_(min=lowest), logits.amax(0).clamp_(min=lowest)
    tile_max = row_maxima.max()
    if tile_max - torch.minimum(row_maxima.min(), column_maxima.min()) < _SHARED_EXP_SPAN:
        logits.sub_(tile_max).exp_()
        rows.add(row, row_maxima, logits.sum(1), tile_max)
        columns.add(column, column_maxima, logits.sum(0), tile_max)
    else:
        rows.add(row, row_maxima, (logits - row_maxima[:, None]).exp_().sum(1), row_maxima)
        columns.add(column, column_maxima, logits.sub_(column_maxima).exp_().sum(0), column_maxima)


def _softmax_gradient(logits: Tensor, row_sums: Tensor, column_sums: Tensor) -> Tensor:
    """exp(X - row_sums) + exp(X - column_sums) for a tile X of R x C logits; overwrites the tile.

    The sums are log-sum-exps, so this adds the softmax over each row and the softmax over each column.
    """
    tile_max = logits.max()
    if tile_max - torch.minimum(row_sums.min(), column_sums.min()) < _SHARED_EXP_SPAN:
        factors = (tile_max - row_sums).exp()[:, None] + (tile_max - column_sums).exp()
        return logits.sub_(tile_max).exp_().mul_(factors)
    row_softmax = (logits - row_sums[:, None]).exp_()
    return logits.sub_(column_sums).exp_().add_(row_softmax)


def _contrastive(batch: _Batch, ranks: "_Ranks") -> LossGradients:
    images, texts, own = batch.images, batch.texts, batch.own_logits
    own_columns = slice(batch.start, batch.start + len(images))
    rows, columns = _RunningSums(images, len(images)), _RunningSums(images, len(texts))
    for row, column, logits, diagonal in batch.tiles():
        if diagonal is not None:
            diagonal.fill_(-torch.inf)
        _add_tile(rows, row, columns, column, logits)
    columns.combine(ranks)
    row_rest, column_rest = rows.logsumexp, columns.logsumexp  # without the matching pair
    loss = F.softplus(row_rest - own).sum() + F.softplus(column_rest[own_columns] - own).sum()
    own_gradient = -torch.sigmoid(row_rest - own) - torch.sigmoid(column_rest[own_columns] - own)
    row_sums = torch.logaddexp(row_rest, own)
    column_sums = torch.logaddexp(column_rest, ranks.gather(own))

    gradients = _Gradients(batch)
    for row, column, logits, diagonal in batch.tiles():
        gradient = _softmax_gradient(logits, row_sums[row], column_sums[column])
        gradients.add(row, column, gradient, diagonal, own_gradient)
    hits = (own > rows.maxima).sum(), (own > columns.maxima[own_columns]).sum()
    return gradients.finish(ranks, loss, images.new_zeros(()), hits, divisor=2 * len(texts))


def _sigmoid(batch: _Batch, bias: Tensor, ranks: "_Ranks") -> LossGradients:
    images, texts, own = batch.images, batch.texts, batch.own_logits
    own_columns = slice(batch.start, batch.start + len(images))
    loss = F.softplus(-own - bias).sum()
    own_gradient = -torch.sigmoid(-own - bias)
    image_maxima = torch.full_like(own, -torch.inf)
    text_maxima = images.new_full((len(texts),), -torch.inf)
    d_bias = images.new_zeros(())
    gradients = _Gradients(batch)
    for row, column, logits, diagonal in batch.tiles():
        if diagonal is not None:
            diagonal.fill_(-torch.inf)
        image_maxima[row] = torch.maximum(image_maxima[row], logits.amax(1))
        text_maxima[column] = torch.maximum(text_maxima[column], logits.amax(0))
        logits += bias
        loss += F.softplus(logits).sum()
        gradient = logits.sigmoid_()
        d_bias += gradients.add(row, column, gradient, diagonal, own_gradient).sum()
    hits = (own > image_maxima).sum(), (own > ranks.max(text_maxima)[own_columns]).sum()
    return gradients.finish(ranks, loss, d_bias, hits, divisor=len(texts))


class _Gradients:
    """Accumulates the gradients of the features from the gradient of the logits, tile by tile."""

    def __init__(self, batch: _Batch) -> None:
        self._batch = batch
        self._images, self._texts = torch.zeros_like(batch.images), torch.zeros_like(batch.texts)

    def add(self, row: slice, column: slice, gradient: Tensor, diagonal: Tensor | None, own: Tensor) -> Tensor:
        """Add a tile's gradient R x C, after setting its `diagonal` to the gradients of the matching pairs' logits.

        Args:
            row: the tile's rows.
            column: the tile's columns.
            gradient: of the tile's logits.
            diagonal: a view of the tile's matching pairs, or None if it has none.
            own: gradients of all n logits of matching pairs.

        Returns:
            The completed gradient.
        """
        batch = self._batch
        if diagonal is not None:
            first = max(row.start, column.start - batch.start)
            diagonal.copy_(own[first : first + len(diagonal)])
        self._images[row].addmm_(gradient, batch.texts[column])
        self._texts[column].addmm_(gradient.T, batch.images[row])
        return gradient

    def finish(
        self, ranks: "_Ranks", loss: Tensor, d_bias: Tensor, hits: tuple[Tensor, Tensor], divisor: int
    ) -> LossGradients:
        """Sum over the ranks and divide by `divisor`, which turns sums into means of the global batch."""
        batch = self._batch
        d_images = self._images.mul_(batch.scale / divisor)
        d_texts = ranks.reduce_scatter(self._texts.mul_(batch.scale / divisor))
        local = torch.stack([loss / divisor, (d_images * batch.images).sum(), d_bias / divisor, *hits])
        total_loss, d_log_scale, total_d_bias, *total_hits = ranks.sum(local)
        to_text, to_image = (count.item() / len(batch.texts) for count in total_hits)
        return LossGradients(total_loss, d_images, d_texts, d_log_scale, total_d_bias, to_text, to_image)


@dataclass(frozen=True)
class _Ranks:
    """The ranks that share the global batch, and the number of rows of each."""

    group: Group | None
    sizes: tuple[int, ...]
    rank: int

    @classmethod
    def of(cls, group: Group | None, num_rows: int, device: torch.device) -> "_Ranks":
        if num_ranks(group) == 1:
            return cls(group, (num_rows,), 0)
        sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(num_ranks(group))]
        dist.all_gather(sizes, torch.tensor([num_rows], device=device), group=group)
        return cls(group, tuple(int(size) for size in torch.cat(sizes).tolist()), dist.get_rank(group))

    @property
    def start(self) -> int:
        """The index of this rank's first row in the global batch."""
        return sum(self.sizes[: self.rank])

    def gather(self, own: Tensor) -> Tensor:
        """n x ... on each rank -> N x ... on all ranks. Pads the rows, because all_gather needs equal sizes."""
        if len(self.sizes) == 1:
            return own
        padded = own.new_zeros(max(self.sizes), *own.shape[1:])
        padded[: len(own)] = own
        gathered = [torch.empty_like(padded) for _ in self.sizes]
        dist.all_gather(gathered, padded, group=self.group)
        return torch.cat([rows[:size] for rows, size in zip(gathered, self.sizes, strict=True)])

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the ranks of tensors of equal shape; overwrites them."""
        if len(self.sizes) > 1:
            dist.all_reduce(values, group=self.group)
        return values

    def max(self, values: Tensor) -> Tensor:
        """The elementwise maximum over the ranks of tensors of equal shape."""
        maxima = values.clone()
        if len(self.sizes) > 1:
            dist.all_reduce(maxima, dist.ReduceOp.MAX, group=self.group)
        return maxima

    def reduce_scatter(self, values: Tensor) -> Tensor:
        """This rank's n rows of the sum over the ranks of N x E. Pads the rows if the ranks' numbers of rows differ."""
        if len(self.sizes) == 1:
            return values
        longest = max(self.sizes)
        if min(self.sizes) < longest:
            parts = torch.split(values, list(self.sizes))
            values = torch.cat([F.pad(part, (0, 0, 0, longest - len(part))) for part in parts])
        own = values.new_empty(longest, *values.shape[1:])
        dist.reduce_scatter_tensor(own, values, group=self.group)
        return own[: self.sizes[self.rank]]
