"""Choose chunk size and graph budget of a worker; reduce them after out-of-memory.

Both affect memory use and speed. The chunk size also affects how gradients are rounded. Checkpoints therefore store
the chunk size (`Checkpoint.progress`), so that a resumed run can continue bit for bit.
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
from pipeline.train.step.gradients import Batch, StepResult, run_one_chunk, set_gradients
from pipeline.train.step.graph_budget import Budget
from pipeline.train.step.out_of_memory import OutOfMemoryElsewhereError, unify_out_of_memory_errors

logger = logging.getLogger("clip")

MIN_PROBED_CHUNK = 8
WORTHWHILE_GAIN = 1.05
"""Factor by which a larger chunk must raise the rate to be chosen. Probing ends after two sizes that do not."""
MEMORY_SHARE = {"cpu": 0.5, "cuda": 0.9}
"""Share of a device's free memory that graphs may use if no budget is set."""


class Chunks:
    """Chunk size and graph budget of one worker over the steps of a run.

    Args:
        size: samples per chunk. Unset: measured on the first step's batch.
        budget_bytes: memory for kept graphs. Unset: derived from the memory that is free after the first step, when the
            optimizer's moments exist.
        norm_group_size: images per chunk in networks with batch norms; None in others.
        bf16: whether the towers run under bfloat16 autocast.
        workers_on_node: the number of workers that share this node's CPU memory.
        length_multiple: captions of a chunk are padded to a multiple of this number of tokens, for compiled towers.
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
        """Compute the step's gradients (gradients.py), retrying with less memory until the step fits.

        Raises:
            torch.OutOfMemoryError: not even one sample, or one group of `norm_group_size` images, fits.
        """
        device = batch.images.device
        if self.size is None:
            self.size = self._probe(network, batch, group)
        if self._has_taken_a_step and self._budget_bytes is None:
            self._budget_bytes = self._budget.max_bytes = spare_bytes(device, self._workers_on_node)
        states = random_state(device)
        while True:
            try:
                with unify_out_of_memory_errors():
                    result = set_gradients(
                        network, batch, chunk_size=self.size, bf16=self._bf16, norm_group_size=self._norm_group_size,
                        length_multiple=self._length_multiple, budget=self._budget, group=group,
                    )  # fmt: skip
            except OutOfMemoryElsewhereError:
                pass  # the other rank reduces its memory use, and all ranks retry the step
            except torch.OutOfMemoryError as error:
                self._reduce_memory(error)
            else:
                self._has_taken_a_step = True
                return result
            set_random_state(states, device)

    def _reduce_memory(self, error: torch.OutOfMemoryError) -> None:
        """Stop keeping graphs if any are kept; otherwise halve the chunk size."""
        assert self.size is not None
        if self._budget.max_bytes:
            self._budget_bytes = self._budget.max_bytes = 0
            logger.warning("out of memory: from now on, only the last chunk of each tower keeps its graph (%s)", error)
        elif self.size > 1 and self._norm_group_size is None:
            self.size //= 2
            logger.warning("out of memory: chunk size reduced to %d samples (%s)", self.size, error)
        else:
            unit = f"norm_group_size={self._norm_group_size} images" if self._norm_group_size else "one sample"
            raise torch.OutOfMemoryError(
                f"a step of {unit} does not fit into the worker's memory; give workers more memory or train a smaller "
                "model"
            ) from error

    def _probe(self, network: Network, batch: Batch, group: Group | None) -> int:
        """Measure which chunk size is fastest; return the minimum over all workers, so that they finish together."""
        if self._norm_group_size is not None:
            return self._norm_group_size
        begin_step(network)
        device = batch.images.device
        states = random_state(device)
        best_size, best_rate, num_misses = 1, 0.0, 0
        for size in _sizes_to_probe(len(batch.images)):
            try:
                with unify_out_of_memory_errors():
                    seconds = self._time_chunk(network, batch, size)
            except torch.OutOfMemoryError:
                break
            if size / seconds > WORTHWHILE_GAIN * best_rate:
                best_size, best_rate, num_misses = size, size / seconds, 0
            else:
                num_misses += 1
            if num_misses == 2:
                break
        network.zero_grad(set_to_none=True)
        set_random_state(states, device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)  # probes used more memory than a step does
        if num_ranks(group) > 1:
            min_size = torch.tensor([best_size], device=device)
            dist.all_reduce(min_size, dist.ReduceOp.MIN, group=group)
            best_size = int(min_size)
        logger.info("chunk size: %d samples", best_size)
        return best_size

    def _time_chunk(self, network: Network, batch: Batch, size: int) -> float:
        """Seconds of a forward and backward pass over the `size` samples with the longest captions."""
        longest = torch.argsort(batch.lengths, stable=True)[-size:]
        rows = longest.to(batch.images.device)
        chunk = Batch(batch.images[rows], batch.tokens[rows], batch.lengths[longest])
        for _ in range(2):  # the first pass is a warm-up
            _synchronize(rows.device)
            began = time.perf_counter()
            run_one_chunk(network, chunk, bf16=self._bf16)
            _synchronize(rows.device)
        return time.perf_counter() - began


def _sizes_to_probe(num_rows: int) -> Iterator[int]:
    size = min(MIN_PROBED_CHUNK, num_rows)
    while size < num_rows:
        yield size
        size *= 2
    yield num_rows


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def spare_bytes(device: torch.device, workers_on_node: int) -> int:
    """Bytes that kept graphs of a worker may use in addition to the peak of its steps so far.

    Workers of a node share the CPU's memory.
    """
    share = MEMORY_SHARE[device.type]
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        usable = free + torch.cuda.memory_reserved(device)
        return max(0, int(share * usable) - torch.cuda.max_memory_allocated(device))
    return int(share * available_memory()) // workers_on_node


def available_memory(root: Path = Path("/")) -> int:
    """Bytes of memory available on this machine or in this container; 0 if unknown.

    Args:
        root: the folder that contains proc and sys.
    """
    limits = []
    with contextlib.suppress(FileNotFoundError):
        fields = dict(line.split(":") for line in (root / "proc/meminfo").read_text().splitlines())
        limits.append(1024 * int(fields["MemAvailable"].split()[0]))
    with contextlib.suppress(FileNotFoundError, ValueError):  # "max" means no limit
        group = root / "sys/fs/cgroup"
        limits.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return min(limits, default=0)
