"""How a worker cuts its share of a step: chunks that pay and fit, graphs that are kept, and less of both on need.

None of it makes a difference to the gradient but by rounding, and only the size of the chunks makes that one; so a run
remembers the size (`Checkpoint.progress`), and one that goes on with it goes on bit for bit.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from pipeline.model.objectives.loss import Group, num_ranks
from pipeline.model.objectives.networks import Network
from pipeline.train.network.sharding import begin_step
from pipeline.train.step.grad_cache import random_state, set_random_state
from pipeline.train.step.gradients import Batch, StepResult, pass_alone, set_gradients
from pipeline.train.step.graph_budget import Budget
from pipeline.train.step.out_of_memory import OutOfMemoryElsewhereError, of_one_type

logger = logging.getLogger("clip")

MIN_PROBED_CHUNK = 8
WORTHWHILE_GAIN = 1.05
"""A chunk twice as large must be so much faster; where two doublings in a row are not, probing ends."""
MEMORY_SHARE = {"cpu": 0.5, "cuda": 0.9}
"""Of a device's free memory, what graphs may take when nobody has set a budget."""


class Chunks:
    """The cuts of one worker, over the steps of a run.

    Args:
        size: samples of a chunk; unset: the first step's batch is probed for it.
        budget_bytes: for the graphs of chunks that are kept; unset: of the memory that the first step has left, and the
            optimizer's moments, which it makes.
        norm_group_size: images of a chunk, where batch norms fix it.
        bf16: precision of the towers.
        workers_on_node: how many share the CPU's memory.
        length_multiple: chunks of captions are padded to a multiple of so many tokens, for compiled towers.
    """

    def __init__(
        self, size: int | None, budget_bytes: int | None, *, norm_group_size: int | None, bf16: bool,
        workers_on_node: int = 1, length_multiple: int = 1,
    ) -> None:  # fmt: skip
        self.size = size
        self._length_multiple = length_multiple
        self._budget_bytes, self._norm_group_size = budget_bytes, norm_group_size
        self._bf16, self._workers_on_node = bf16, workers_on_node
        self._budget = Budget(budget_bytes or 0)
        self._has_taken_a_step = False

    def set_gradients(self, network: Network, batch: Batch, group: Group | None = None) -> StepResult:
        """The step's gradients (gradients.py), tried again with smaller chunks until they fit.

        Raises:
            torch.OutOfMemoryError: not even one sample at a time does.
        """
        device = batch.images.device
        if self.size is None:
            self.size = self._probe(network, batch, group)
        if self._has_taken_a_step and self._budget_bytes is None:
            self._budget_bytes = self._budget.max_bytes = spare_bytes(device, self._workers_on_node)
        states = random_state(device)
        while True:
            try:
                with of_one_type():
                    result = set_gradients(
                        network, batch, chunk_size=self.size, bf16=self._bf16, norm_group_size=self._norm_group_size,
                        length_multiple=self._length_multiple, budget=self._budget, group=group,
                    )  # fmt: skip
            except OutOfMemoryElsewhereError:
                pass  # that rank takes less, and all take the step again
            except torch.OutOfMemoryError as error:
                self._take_less(error)
            else:
                self._has_taken_a_step = True
                return result
            set_random_state(states, device)

    def _take_less(self, error: torch.OutOfMemoryError) -> None:
        """No graphs to keep at first, then chunks of half the size."""
        assert self.size is not None
        if self._budget.max_bytes:
            self._budget_bytes = self._budget.max_bytes = 0
            logger.warning("out of memory: no more graphs are kept than the last ones (%s)", error)
        elif self.size > 1 and self._norm_group_size is None:
            self.size //= 2
            logger.warning("out of memory: %d samples in a chunk from here on (%s)", self.size, error)
        else:
            unit = f"norm_group_size={self._norm_group_size} images" if self._norm_group_size else "one sample"
            raise torch.OutOfMemoryError(f"{unit} of this model is more than the worker's memory can hold") from error

    def _probe(self, network: Network, batch: Batch, group: Group | None) -> int:
        """The size whose rate is best, or nearly; the least of all workers', so that they finish together."""
        if self._norm_group_size is not None:
            return self._norm_group_size
        begin_step(network)
        device = batch.images.device
        states = random_state(device)
        best_size, best_rate, misses = 1, 0.0, 0
        for size in _doubled(len(batch.images)):
            try:
                with of_one_type():
                    seconds = self._time_chunk(network, batch, size)
            except torch.OutOfMemoryError:
                break
            if size / seconds > WORTHWHILE_GAIN * best_rate:
                best_size, best_rate, misses = size, size / seconds, 0
            else:
                misses += 1
            if misses == 2:
                break
        network.zero_grad(set_to_none=True)
        set_random_state(states, device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)  # what did not fit says nothing of a step
        if num_ranks(group) > 1:
            least = torch.tensor([best_size], device=device)
            dist.all_reduce(least, dist.ReduceOp.MIN, group=group)
            best_size = int(least)
        logger.info("%d samples in a chunk", best_size)
        return best_size

    def _time_chunk(self, network: Network, batch: Batch, size: int) -> float:
        """Seconds, forward and back, of as many of the batch's samples, those with the longest captions."""
        longest = torch.argsort(batch.lengths, stable=True)[-size:]
        rows = longest.to(batch.images.device)
        part = Batch(batch.images[rows], batch.tokens[rows], batch.lengths[longest])
        for _ in range(2):  # the first one warms up
            _finish(rows.device)
            began = time.perf_counter()
            pass_alone(network, part, bf16=self._bf16)
            _finish(rows.device)
        return time.perf_counter() - began


def _doubled(num_rows: int) -> Iterator[int]:
    size = min(MIN_PROBED_CHUNK, num_rows)
    while size < num_rows:
        yield size
        size *= 2
    yield num_rows


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def spare_bytes(device: torch.device, workers_on_node: int) -> int:
    """What the graphs of a worker may take beside what its busiest step so far has taken; CPUs' memory is shared."""
    share = MEMORY_SHARE[device.type]
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        room = free + torch.cuda.memory_reserved(device)
        return max(0, int(share * room) - torch.cuda.max_memory_allocated(device))
    return int(share * available_memory()) // workers_on_node


def available_memory(root: Path = Path("/")) -> int:
    """Bytes that this machine, or the container that we are in, could still give out; 0 where nobody tells.

    Args:
        root: where proc and sys are.
    """
    found = []
    with contextlib.suppress(FileNotFoundError):
        fields = dict(line.split(":") for line in (root / "proc/meminfo").read_text().splitlines())
        found.append(1024 * int(fields["MemAvailable"].split()[0]))
    with contextlib.suppress(FileNotFoundError, ValueError):  # a limit that is "max" is none
        group = root / "sys/fs/cgroup"
        found.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return min(found, default=0)
