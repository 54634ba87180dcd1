"""Optimize half-precision weights with AdamW and half-precision moments (section 2.5 of the paper).

bfloat16 values are copied to float32, updated there by torch's fused kernel, and rounded stochastically when stored
(stochastic_rounding.py). Rounding to the nearest number would lose updates that are small relative to the value:

- A second moment v changes by (1 - beta2)(g^2 - v). bfloat16 has 8 significant bits, so with beta2 = 0.999 a moment
  could only grow: its decay by a thousandth is less than half the distance to the next lower number.
- The updates of a weight become equally small relative to the weight when the learning rate has decreased.

The format is bfloat16 because squared gradients fall to 1e-16 and lower, which float16 rounds to zero.

Memory per element: 4 bytes for the moments instead of 8, and 2 bytes for a half-precision weight instead of 4. Float32
copies are made for at most BUCKET elements at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, Shard

from pipeline.train.optimizer.stochastic_rounding import BLOCK, random_bits, round_, table_offsets

BUCKET = {"cpu": BLOCK, "cuda": 16 * BLOCK}
"""Number of elements updated at once, by device: as many as fit a CPU's cache or keep a GPU busy."""
_FIRST, _SECOND = "exp_avg", "exp_avg_sq"  # names in torch's AdamW
_STREAMS = {_FIRST: 0, _SECOND: 1, "weight": 2}


@dataclass(frozen=True)
class _Piece:
    """Consecutive elements of one parameter, stored in this process and all in one block; all tensors are flat."""

    tensors: dict[str, Tensor]
    """The stored tensors; the keys are those of _STREAMS."""
    gradient: Tensor
    offset: int
    """The parameter's offset in the table of random bits."""
    first: int
    """Index of the first element in the whole parameter."""

    def __len__(self) -> int:
        return len(self.gradient)


class HalfAdamW(torch.optim.Optimizer):
    """AdamW that rounds bfloat16 moments and bfloat16 weights stochastically.

    The rounding depends only on (seed, step, parameter, element). A resumed run therefore equals an uninterrupted one
    bit for bit, and weights sharded by rows (DTensor, as in FSDP2) are updated exactly like unsharded ones. Weights are
    float32 or bfloat16; gradients are always float32 (`Tensor.grad_dtype`).
    """

    def __init__(
        self, params: Iterable[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float,
        moments: torch.dtype, seed: int,
    ) -> None:  # fmt: skip
        """Create the optimizer; torch's AdamW has the same arguments, without `moments` and `seed`.

        Args:
            params: parameter groups, each with a `weight_decay`.
            lr: learning rate.
            betas: decay rates of the moments.
            eps: added to the square root of the second moment.
            moments: dtype of the stored moments, torch.bfloat16 or torch.float32.
            seed: seed of the random bits.
        """
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self._moments, self._seed = moments, seed
        self._parameters: list[nn.Parameter] = [p for group in self.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every weight that has a gradient."""
        assert closure is None
        offsets: dict[int, list[int]] = {}
        numbers = iter(range(len(self._parameters)))
        for group in self.param_groups:
            by_step: dict[int, list[_Piece]] = {}
            for p, number in zip(group["params"], numbers, strict=False):
                if p.grad is not None:
                    state = self._state_of(p)
                    state["step"] += 1
                    step = int(state["step"])
                    if step not in offsets:
                        offsets[step] = table_offsets(self._seed, step, len(self._parameters))
                    by_step.setdefault(step, []).extend(_pieces(p, state, offsets[step][number]))
            for step, pieces in by_step.items():
                for bucket in _buckets(pieces):
                    _update(bucket, group, step)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a `state_dict`; moments keep their precision."""
        super().load_state_dict(state_dict)  # converts moments to the dtype of their weights
        for number, saved in state_dict["state"].items():
            p = self._parameters[number]
            moments = {name: saved[name].to(p.device, self._moments, copy=True) for name in (_FIRST, _SECOND)}
            self.state[p] = {"step": saved["step"].clone(), **moments}

    def _state_of(self, p: nn.Parameter) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[p]
        if not state:
            state["step"] = torch.tensor(0)  # on the CPU, because step() reads it there
            for name in (_FIRST, _SECOND):
                state[name] = torch.zeros_like(p, dtype=self._moments)
        return state


def _pieces(p: nn.Parameter, state: dict[str, Tensor], offset: int) -> Iterator[_Piece]:
    """Split this process's part of a parameter at the ends of blocks."""
    assert p.grad is not None
    weight, gradient, first_moment, second_moment = (
        _local(t).detach().view(-1) for t in (p, p.grad, state[_FIRST], state[_SECOND])
    )
    assert gradient.dtype == torch.float32
    first = _first_element(p)
    start = 0
    while start < len(weight):
        stop = min(len(weight), start + BLOCK - (first + start) % BLOCK)
        tensors = {
            _FIRST: first_moment[start:stop],
            _SECOND: second_moment[start:stop],
            "weight": weight[start:stop],
        }
        yield _Piece(tensors, gradient[start:stop], offset, first + start)
        start = stop


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _first_element(p: Tensor) -> int:
    """Index, in the whole parameter, of this process's first element; its elements are consecutive."""
    if not isinstance(p, DTensor):
        return 0
    num_rows, first_row = p.shape[0], 0
    ranks = p.device_mesh.get_coordinate()
    assert ranks is not None
    for num_parts, rank, placement in zip(p.device_mesh.shape, ranks, p.placements, strict=True):
        assert placement in (Replicate(), Shard(0)), "only parameters sharded by rows are supported"
        if placement == Shard(0):
            rows_per_part = -(-num_rows // num_parts)  # as torch.chunk divides them
            before = min(rank * rows_per_part, num_rows)
            first_row, num_rows = first_row + before, min(rows_per_part, num_rows - before)
    return first_row * (p.numel() // max(1, p.shape[0]))


def _buckets(pieces: list[_Piece]) -> Iterator[list[_Piece]]:
    """Group pieces to update together: at most BUCKET elements in total, with weights of one dtype."""
    pieces = sorted(pieces, key=lambda piece: piece.tensors["weight"].dtype == torch.float32)  # stable
    bucket: list[_Piece] = []
    capacity = remaining = BUCKET[pieces[0].gradient.device.type]
    for piece in pieces:
        if bucket and (len(piece) > remaining or piece.tensors["weight"].dtype != bucket[0].tensors["weight"].dtype):
            yield bucket
            bucket, remaining = [], capacity
        bucket.append(piece)
        remaining -= len(piece)
    if bucket:
        yield bucket


def _update(bucket: list[_Piece], group: dict[str, Any], step: int) -> None:
    """Update the pieces of a bucket by one step."""
    sizes = [len(piece) for piece in bucket]
    device = bucket[0].gradient.device
    flat, updated = {}, {}
    for name in _STREAMS:
        stored = [piece.tensors[name] for piece in bucket]
        updated[name] = stored
        if stored[0].dtype == torch.bfloat16:
            flat[name] = torch.empty(sum(sizes), dtype=torch.float32, device=device)
            updated[name] = list(torch.split(flat[name], sizes))
            torch._foreach_copy_(updated[name], stored)
    beta1, beta2 = group["betas"]
    torch._fused_adamw_(
        updated["weight"], [piece.gradient for piece in bucket], updated[_FIRST], updated[_SECOND], [],
        [torch.full((), step, dtype=torch.float32, device=device)] * len(bucket),
        lr=group["lr"], beta1=beta1, beta2=beta2, weight_decay=group["weight_decay"], eps=group["eps"],
        amsgrad=False, maximize=False,
    )  # fmt: skip
    for name, values in flat.items():
        bits = [random_bits(piece.offset, _STREAMS[name], piece.first, len(piece), device) for piece in bucket]
        round_(values, torch.cat(bits) if len(bits) > 1 else bits[0])
        torch._foreach_copy_([piece.tensors[name] for piece in bucket], updated[name])
