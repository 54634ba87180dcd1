"""Decide after each step whether to save a checkpoint, and whether to leave because nodes change or the job stops.

The first worker decides, by its clock and the requests it received, and broadcasts the decision, so that all workers
act after the same step. Ray Train's get_preemption_info() is a collective call, so all workers poll it together, about
once a second.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist

from pipeline.train.config import TrainConfig

POLL_SECONDS = 1.0
"""Time between two checks for node preemption. Spot instances get a notice 30 seconds to two minutes in advance."""
_SAVE, _LEAVE, _POLL = 1, 2, 4  # flags of a decision


@dataclass(frozen=True)
class Decision:
    """What all workers do after a step."""

    save: bool
    """Save a checkpoint now."""
    leave: bool
    """Leave after saving: the job restarts the workers on other nodes, or stops."""


class StepDecisions:
    """Makes the same decision on all workers after each step.

    Args:
        config: when checkpoints are due.
        num_steps: number of steps of the whole run.
        run_lock: the actor of run_lock.RunLock.
        device: device of this worker.
    """

    def __init__(self, config: TrainConfig, *, num_steps: int, run_lock: Any, device: torch.device) -> None:
        self._config, self._num_steps, self._device = config, num_steps, device
        context = ray.train.get_context()
        self._num_workers = context.get_world_size()
        self._polled_at = self._saved_at = time.monotonic()
        self._leave_request = run_lock.leave_requested.remote() if context.get_world_rank() == 0 else None

    def after(self, num_steps: int) -> Decision:
        """The decision after `num_steps` steps. All workers must call this after every step."""
        flags = self._broadcast(self._decide(num_steps) if self._leave_request is not None else 0)
        if flags & _POLL and ray.train.get_preemption_info() is not None:
            flags |= _SAVE | _LEAVE
        if flags & _SAVE:
            self._saved_at = time.monotonic()
        return Decision(bool(flags & _SAVE), bool(flags & _LEAVE))

    def _decide(self, num_steps: int) -> int:
        """The flags of the first worker's decision."""
        config, now, flags = self._config, time.monotonic(), 0
        if num_steps % config.checkpoint_every_steps == 0 or num_steps == self._num_steps:
            flags |= _SAVE
        if config.checkpoint_every_minutes and now - self._saved_at >= 60 * config.checkpoint_every_minutes:
            flags |= _SAVE
        if ray.wait([self._leave_request], timeout=0)[0]:
            ray.get(self._leave_request)  # raises if the actor died, which is not a request
            flags |= _SAVE | _LEAVE
        if now - self._polled_at >= POLL_SECONDS:
            self._polled_at = now
            flags |= _POLL
        return flags

    def _broadcast(self, flags: int) -> int:
        """Send the first worker's flags to all workers."""
        if self._num_workers == 1:
            return flags
        message = torch.tensor(flags, device=self._device)
        dist.broadcast(message, src=0)
        return int(message)
