"""Contrastive losses over the global batch and their exact gradients, on one rank or many, in tiles.

The matrix of logits X = s I T^t is never held. Rank k owns the rows of its n images, against the texts of all ranks:

1. Tiles of X give, online, each row's and each column's greatest value and sum of exponentials; the columns' are then
   combined over the ranks. What follows from them is the loss.
2. The same tiles again, now as gradient G of the loss with respect to X; dI = s G T stays here, dT = s G^t I is summed
   over the ranks, and d log s is the sum of I * dI.

Four products of matrices instead of six, memory for one tile and the features, and no overflow at any scale, because
the greatest value is always subtracted. A pair's own logit is kept apart from the others, so that small losses are
exact. SigLIP's loss (Zhai et al. 2023) needs no sums, hence one sweep and three products. Tiling after FlashAttention
(Dao et al. 2022) and Inf-CL (Cheng et al. 2024); objective: section 2.3, figure 3.

Features are normalised by the caller. What is half precision is computed in float32, float64 stays.

Shapes: n rows of this rank, N rows of the global batch, E joint embedding, R x C a tile.
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
_SPAN = 60.0
"""Logits of a tile whose greatest rows and columns lie closer together share one exponential for both directions: with
the tile's greatest value subtracted, what matters to any of them is far from float32's least number, exp(-87)."""


@dataclass(frozen=True)
class LossGradients:
    """The mean loss of the global batch, alike on all ranks, and its gradients."""

    loss: Tensor
    """Scalar."""
    image_features: Tensor
    """n x E, of this rank's rows."""
    text_features: Tensor
    """n x E, of this rank's rows."""
    log_scale: Tensor
    """Scalar, alike on all ranks, so it must not be summed over them again."""
    bias: Tensor
    """The same of the bias; zero where there is none."""
    accuracy_image_to_text: float
    """Share of the global batch's images that are more similar to their own text than to any other."""
    accuracy_text_to_image: float


def contrastive_loss(
    image_features: Tensor, text_features: Tensor, log_scale: Tensor, group: Group | None = None
) -> Tensor:
    """The mean of both directions' cross-entropies over the global batch: a scalar, alike on all ranks.

    Differentiable once. Each rank's gradients are those of the global mean with respect to its own rows, so the towers'
    are to be summed over the ranks (where they are averaged, multiply the loss by the number of ranks); that of
    `log_scale` is alike on all ranks.

    Args:
        image_features: n x E, of length one; each rank may have another n.
        text_features: n x E; row i belongs to row i of the images.
        log_scale: scalar, the logarithm of the factor before the cosine similarities.
        group: the ranks that share the batch; those of torch.distributed, where it is initialised.
    """
    loss: Tensor = _Loss.apply(image_features, text_features, log_scale, None, group)
    return loss


def sigmoid_loss(
    image_features: Tensor, text_features: Tensor, log_scale: Tensor, bias: Tensor, group: Group | None = None
) -> Tensor:
    """SigLIP's loss: every pair of the N x N is judged by itself, matching or not; summed, over N. A scalar.

    Args and gradients as in `contrastive_loss`; `bias` is a scalar that is added to all logits.
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
    """Loss, gradients and accuracies at once: of `sigmoid_loss` where there is a bias, of `contrastive_loss` else."""
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
    """How many processes share a batch: one where torch.distributed is not initialised."""
    return dist.get_world_size(group) if dist.is_initialized() else 1


class _Loss(torch.autograd.Function):
    """The gradients are there as soon as the loss is, so the backward pass only hands them out."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, texts: Tensor, log_scale: Tensor, bias: Tensor | None, group: Group | None
    ) -> Tensor:
        found = loss_gradients(images, texts, log_scale, bias, group)
        ctx.save_for_backward(found.image_features, found.text_features, found.log_scale, found.bias)
        ctx.dtypes = images.dtype, texts.dtype
        return found.loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        of_images, of_texts, of_scale, of_bias = (gradient * saved for saved in ctx.saved_tensors)
        images, texts = ctx.dtypes
        needs_bias = ctx.needs_input_grad[3]
        return of_images.to(images), of_texts.to(texts), of_scale, of_bias if needs_bias else None, None


@dataclass(frozen=True)
class _Batch:
    """What one rank compares: its n images and the N texts of all; its own rows are those from `start` on."""

    images: Tensor
    texts: Tensor
    scale: Tensor
    start: int

    @property
    def own_logits(self) -> Tensor:
        """Of each image and its text: n."""
        own = self.texts[self.start : self.start + len(self.images)]
        return self.scale * (self.images * own).sum(dim=1)

    def tiles(self) -> Iterator[tuple[slice, slice, Tensor, Tensor | None]]:
        """Rows and columns of each tile, its logits R x C (overwritten by the next), and its part of the diagonal."""
        num_rows, num_columns = TILE[self.images.device.type]
        space = self.images.new_empty(min(num_rows, len(self.images)) * min(num_columns, len(self.texts)))
        for top in range(0, len(self.images), num_rows):
            rows = slice(top, min(top + num_rows, len(self.images)))
            scaled = self.scale * self.images[rows]
            for left in range(0, len(self.texts), num_columns):
                columns = slice(left, min(left + num_columns, len(self.texts)))
                shape = (rows.stop - top, columns.stop - left)
                logits = space[: shape[0] * shape[1]].view(shape)
                torch.mm(scaled, self.texts[columns].T, out=logits)
                offset = self.start + top - left
                crosses = -shape[0] < offset < shape[1]
                yield rows, columns, logits, logits.diagonal(offset) if crosses else None


class _Online:
    """Greatest value and logarithm of the sum of exponentials of rows or columns that come tile by tile."""

    def __init__(self, like: Tensor, count: int) -> None:
        self.most = like.new_full((count,), torch.finfo(like.dtype).min)
        self._sum = like.new_zeros(count)

    def add(self, where: slice, most: Tensor, added: Tensor, reference: Tensor) -> None:
        """A tile's greatest values, and its sums of exponentials from which `reference` was subtracted."""
        before = self.most[where]
        most = torch.maximum(before, most)
        self._sum[where] = self._sum[where] * (before - most).exp() + added * (reference - most).exp()
        self.most[where] = most

    def combine(self, ranks: "_Ranks") -> None:
        """With those of the other ranks."""
        before, self.most = self.most, ranks.greatest(self.most)
        self._sum = ranks.sum(self._sum * (before - self.most).exp())

    @property
    def logsumexp(self) -> Tensor:
        """Minus infinity where nothing was added."""
        return self.most + self._sum.log()


def _add_tile(rows: _Online, row: slice, columns: _Online, column: slice, logits: Tensor) -> None:
    """A tile's part of the sums of its rows and its columns; overwrites the tile."""
    lowest = torch.finfo(logits.dtype).min  # not minus infinity, which a row may consist of
    most_of_row, most_of_column = logits.amax(1).clamp_(min=lowest), logits.amax(0).clamp_(min=lowest)
    most = most_of_row.max()
    if most - torch.minimum(most_of_row.min(), most_of_column.min()) < _SPAN:
        logits.sub_(most).exp_()
        rows.add(row, most_of_row, logits.sum(1), most)
        columns.add(column, most_of_column, logits.sum(0), most)
    else:
        rows.add(row, most_of_row, (logits - most_of_row[:, None]).exp_().sum(1), most_of_row)
        columns.add(column, most_of_column, logits.sub_(most_of_column).exp_().sum(0), most_of_column)


def _softmax_gradient(logits: Tensor, row_sums: Tensor, column_sums: Tensor) -> Tensor:
    """exp(X - row sums) + exp(X - column sums), of a tile R x C; overwrites it."""
    most = logits.max()
    if most - torch.minimum(row_sums.min(), column_sums.min()) < _SPAN:
        factors = (most - row_sums).exp()[:, None] + (most - column_sums).exp()
        return logits.sub_(most).exp_().mul_(factors)
    of_rows = (logits - row_sums[:, None]).exp_()
    return logits.sub_(column_sums).exp_().add_(of_rows)


def _contrastive(batch: _Batch, ranks: "_Ranks") -> LossGradients:
    images, texts, own = batch.images, batch.texts, batch.own_logits
    mine = slice(batch.start, batch.start + len(images))
    rows, columns = _Online(images, len(images)), _Online(images, len(texts))
    for row, column, logits, diagonal in batch.tiles():
        if diagonal is not None:
            diagonal.fill_(-torch.inf)
        _add_tile(rows, row, columns, column, logits)
    columns.combine(ranks)
    others_of_image, others_of_text = rows.logsumexp, columns.logsumexp  # without the pair itself
    loss = F.softplus(others_of_image - own).sum() + F.softplus(others_of_text[mine] - own).sum()
    own_gradient = -torch.sigmoid(others_of_image - own) - torch.sigmoid(others_of_text[mine] - own)
    row_sums = torch.logaddexp(others_of_image, own)
    column_sums = torch.logaddexp(others_of_text, ranks.gather(own))

    gradients = _Gradients(batch)
    for row, column, logits, diagonal in batch.tiles():
        gradient = _softmax_gradient(logits, row_sums[row], column_sums[column])
        gradients.add(row, column, gradient, diagonal, own_gradient)
    hits = (own > rows.most).sum(), (own > columns.most[mine]).sum()
    return gradients.finish(ranks, loss, images.new_zeros(()), hits, divisor=2 * len(texts))


def _sigmoid(batch: _Batch, bias: Tensor, ranks: "_Ranks") -> LossGradients:
    images, texts, own = batch.images, batch.texts, batch.own_logits
    mine = slice(batch.start, batch.start + len(images))
    loss = F.softplus(-own - bias).sum()
    own_gradient = -torch.sigmoid(-own - bias)
    most_of_image = torch.full_like(own, -torch.inf)
    most_of_text = images.new_full((len(texts),), -torch.inf)
    of_bias = images.new_zeros(())
    gradients = _Gradients(batch)
    for row, column, logits, diagonal in batch.tiles():
        if diagonal is not None:
            diagonal.fill_(-torch.inf)
        most_of_image[row] = torch.maximum(most_of_image[row], logits.amax(1))
        most_of_text[column] = torch.maximum(most_of_text[column], logits.amax(0))
        logits += bias
        loss += F.softplus(logits).sum()
        gradient = logits.sigmoid_()
        of_bias += gradients.add(row, column, gradient, diagonal, own_gradient).sum()
    hits = (own > most_of_image).sum(), (own > ranks.greatest(most_of_text)[mine]).sum()
    return gradients.finish(ranks, loss, of_bias, hits, divisor=len(texts))


class _Gradients:
    """Adds up what the gradient with respect to the logits makes of the features', tile by tile."""

    def __init__(self, batch: _Batch) -> None:
        self._batch = batch
        self._images, self._texts = torch.zeros_like(batch.images), torch.zeros_like(batch.texts)

    def add(self, row: slice, column: slice, gradient: Tensor, diagonal: Tensor | None, own: Tensor) -> Tensor:
        """A tile's gradient R x C, whose part of the diagonal is filled from that of all own logits first."""
        batch = self._batch
        if diagonal is not None:
            first = max(row.start, column.start - batch.start)
            diagonal.copy_(own[first : first + len(diagonal)])
        self._images[row].addmm_(gradient, batch.texts[column])
        self._texts[column].addmm_(gradient.T, batch.images[row])
        return gradient

    def finish(
        self, ranks: "_Ranks", loss: Tensor, of_bias: Tensor, hits: tuple[Tensor, Tensor], divisor: int
    ) -> LossGradients:
        """Of the global mean: what has been added up is divided so."""
        batch = self._batch
        of_images = self._images.mul_(batch.scale / divisor)
        of_texts = ranks.sum_of_own(self._texts.mul_(batch.scale / divisor))
        shares = torch.stack([loss / divisor, (of_images * batch.images).sum(), of_bias / divisor, *hits])
        total_loss, of_scale, all_of_bias, *all_hits = ranks.sum(shares)
        to_text, to_image = (count.item() / len(batch.texts) for count in all_hits)
        return LossGradients(total_loss, of_images, of_texts, of_scale, all_of_bias, to_text, to_image)


@dataclass(frozen=True)
class _Ranks:
    """Those that share the global batch, and how many rows each of them has."""

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
        """The first row of this rank."""
        return sum(self.sizes[: self.rank])

    def gather(self, own: Tensor) -> Tensor:
        """n x ... of each rank -> N x ...; padded meanwhile, because all_gather wants equal sizes."""
        if len(self.sizes) == 1:
            return own
        padded = own.new_zeros(max(self.sizes), *own.shape[1:])
        padded[: len(own)] = own
        gathered = [torch.empty_like(padded) for _ in self.sizes]
        dist.all_gather(gathered, padded, group=self.group)
        return torch.cat([rows[:size] for rows, size in zip(gathered, self.sizes, strict=True)])

    def sum(self, values: Tensor) -> Tensor:
        """Over the ranks, of tensors of one shape; overwrites them."""
        if len(self.sizes) > 1:
            dist.all_reduce(values, group=self.group)
        return values

    def greatest(self, values: Tensor) -> Tensor:
        """Over the ranks, of tensors of one shape."""
        found = values.clone()
        if len(self.sizes) > 1:
            dist.all_reduce(found, dist.ReduceOp.MAX, group=self.group)
        return found

    def sum_of_own(self, values: Tensor) -> Tensor:
        """This rank's n rows of the sum over the ranks of N x E; padded meanwhile, where the ranks' rows differ."""
        if len(self.sizes) == 1:
            return values
        most = max(self.sizes)
        if min(self.sizes) < most:
            parts = torch.split(values, list(self.sizes))
            values = torch.cat([F.pad(part, (0, 0, 0, most - len(part))) for part in parts])
        own = values.new_empty(most, *values.shape[1:])
        dist.reduce_scatter_tensor(own, values, group=self.group)
        return own[: self.sizes[self.rank]]
