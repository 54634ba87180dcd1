"""Adam with decoupled weight decay for weights and moments in half precision (section 2.5 of the paper).

What is stored in bfloat16 is read into float32, stepped there by torch's fused kernel, and rounded stochastically on
its way back (stochastic_rounding.py). Plain rounding would lose what is small beside the number it changes:

- the second moment moves by (1 - beta2)(g^2 - v). bfloat16 has 8 bits, so with beta2 = 0.999 a moment would only ever
  grow: its decay by a thousandth is less than half of the distance to the next number below;
- a weight's steps are as small beside it once the learning rate has come down.

bfloat16 and not float16, because squares of gradients go down to 1e-16 and lower, where float16 has only zeros.

Memory for each element: 4 bytes of moments instead of 8, 2 of a half-precision weight instead of 4. Float32 copies are
of BUCKET elements at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, Shard

from pipeline.train.optimizer.stochastic_rounding import BLOCK, open_table, random_bits, round_

BUCKET = {"cpu": BLOCK, "cuda": 16 * BLOCK}
"""Elements that are stepped at once, by device: what a CPU's cache still holds, what a GPU is busy with."""
_FIRST, _SECOND = "exp_avg", "exp_avg_sq"  # torch's names
_STREAMS = {_FIRST: 0, _SECOND: 1, "weight": 2}


@dataclass(frozen=True)
class _Piece:
    """Elements of one parameter that lie one after the other in this process and in one block, all tensors flat."""

    tensors: dict[str, Tensor]
    """By the names of _STREAMS."""
    gradient: Tensor
    place: int
    """Where the random table is open."""
    first: int
    """Number of the first element in the whole parameter."""

    def __len__(self) -> int:
        return len(self.gradient)


class HalfAdamW(torch.optim.Optimizer):
    """AdamW whose moments, and those weights that are in bfloat16, are rounded stochastically.

    Steps depend on (seed, step, parameter, element) and nothing else: a run that is resumed goes on bit by bit, and
    weights that are shared out by rows (DTensor, as FSDP2 has them) take the step that the whole ones would take.
    Weights are float32 or bfloat16, their gradients float32 always (`Tensor.grad_dtype`).
    """

    def __init__(
        self, params: Iterable[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float,
        moments: torch.dtype, seed: int,
    ) -> None:  # fmt: skip
        """As torch's AdamW.

        Args:
            params: groups with their `weight_decay`.
            lr: learning rate.
            betas: decay of the moments.
            eps: added to the root of the second moment.
            moments: torch.bfloat16 or torch.float32.
            seed: of the random numbers.
        """
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self._moments, self._seed = moments, seed
        self._parameters: list[nn.Parameter] = [p for group in self.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every weight that has a gradient."""
        assert closure is None
        places: dict[int, list[int]] = {}
        numbers = iter(range(len(self._parameters)))
        for group in self.param_groups:
            by_step: dict[int, list[_Piece]] = {}
            for p, number in zip(group["params"], numbers, strict=False):
                if p.grad is not None:
                    state = self._state_of(p)
                    state["step"] += 1
                    step = int(state["step"])
                    if step not in places:
                        places[step] = open_table(self._seed, step, len(self._parameters))
                    by_step.setdefault(step, []).extend(_pieces(p, state, places[step][number]))
            for step, pieces in by_step.items():
                for bucket in _buckets(pieces):
                    _move(bucket, group, step)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a `state_dict`, whose moments keep their precision."""
        super().load_state_dict(state_dict)  # gives them that of their weights
        for number, saved in state_dict["state"].items():
            p = self._parameters[number]
            moments = {name: saved[name].to(p.device, self._moments, copy=True) for name in (_FIRST, _SECOND)}
            self.state[p] = {"step": saved["step"].clone(), **moments}

    def _state_of(self, p: nn.Parameter) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[p]
        if not state:
            state["step"] = torch.tensor(0)  # on the CPU, where it is read
            for name in (_FIRST, _SECOND):
                state[name] = torch.zeros_like(p, dtype=self._moments)
        return state


def _pieces(p: nn.Parameter, state: dict[str, Tensor], place: int) -> Iterator[_Piece]:
    """This process's part of a parameter, cut where blocks end."""
    assert p.grad is not None
    weight, gradient, one, two = (_own(t).detach().view(-1) for t in (p, p.grad, state[_FIRST], state[_SECOND]))
    assert gradient.dtype == torch.float32
    first = _first_element(p)
    start = 0
    while start < len(weight):
        stop = min(len(weight), start + BLOCK - (first + start) % BLOCK)
        tensors = {_FIRST: one[start:stop], _SECOND: two[start:stop], "weight": weight[start:stop]}
        yield _Piece(tensors, gradient[start:stop], place, first + start)
        start = stop


def _own(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _first_element(p: Tensor) -> int:
    """Number, in the whole parameter, of the first element that this process has; the others follow it."""
    if not isinstance(p, DTensor):
        return 0
    num_rows, first_row = p.shape[0], 0
    ranks = p.device_mesh.get_coordinate()
    assert ranks is not None
    for num_parts, rank, placement in zip(p.device_mesh.shape, ranks, p.placements, strict=True):
        assert placement in (Replicate(), Shard(0)), "shared out by rows only"
        if placement == Shard(0):
            rows_per_part = -(-num_rows // num_parts)  # as torch.chunk has it
            before = min(rank * rows_per_part, num_rows)
            first_row, num_rows = first_row + before, min(rows_per_part, num_rows - before)
    return first_row * (p.numel() // max(1, p.shape[0]))


def _buckets(pieces: list[_Piece]) -> Iterator[list[_Piece]]:
    """Pieces that are stepped at once: of BUCKET elements together, at most, and of weights of one type."""
    pieces = sorted(pieces, key=lambda piece: piece.tensors["weight"].dtype == torch.float32)  # stable
    bucket: list[_Piece] = []
    most = room = BUCKET[pieces[0].gradient.device.type]
    for piece in pieces:
        if bucket and (len(piece) > room or piece.tensors["weight"].dtype != bucket[0].tensors["weight"].dtype):
            yield bucket
            bucket, room = [], most
        bucket.append(piece)
        room -= len(piece)
    if bucket:
        yield bucket


def _move(bucket: list[_Piece], group: dict[str, Any], step: int) -> None:
    """One step of all pieces of a bucket."""
    sizes = [len(piece) for piece in bucket]
    device = bucket[0].gradient.device
    flat, stepped = {}, {}
    for name in _STREAMS:
        stored = [piece.tensors[name] for piece in bucket]
        stepped[name] = stored
        if stored[0].dtype == torch.bfloat16:
            flat[name] = torch.empty(sum(sizes), dtype=torch.float32, device=device)
            stepped[name] = list(torch.split(flat[name], sizes))
            torch._foreach_copy_(stepped[name], stored)
    beta1, beta2 = group["betas"]
    torch._fused_adamw_(
        stepped["weight"], [piece.gradient for piece in bucket], stepped[_FIRST], stepped[_SECOND], [],
        [torch.full((), step, dtype=torch.float32, device=device)] * len(bucket),
        lr=group["lr"], beta1=beta1, beta2=beta2, weight_decay=group["weight_decay"], eps=group["eps"],
        amsgrad=False, maximize=False,
    )  # fmt: skip
    for name, values in flat.items():
        bits = [random_bits(one.place, _STREAMS[name], one.first, len(one), device) for one in bucket]
        round_(values, torch.cat(bits) if len(bits) > 1 else bits[0])
        torch._foreach_copy_([piece.tensors[name] for piece in bucket], stepped[name])
