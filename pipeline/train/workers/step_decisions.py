"""What workers are told from outside between two steps: that nodes come or go, that the job is being stopped.

The first worker looks at its clock and at what it is told, and all do the same after the same step. Ray Train's word
for a node that goes away is a barrier, so it is asked for every second or so, by all.
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

ASK_SECONDS = 1.0
"""How often it is asked whether a node is going away: spot notices come from 30 seconds to two minutes ahead."""
_SAVE, _LEAVE, _ASK = 1, 2, 4


@dataclass(frozen=True)
class Decision:
    """What all workers do after a step."""

    save: bool
    """A checkpoint, now."""
    leave: bool
    """And then leave, to be started again on other nodes, or not at all."""


class StepDecisions:
    """Decides after each step, alike on all workers.

    Args:
        config: when checkpoints are due.
        num_steps: of the whole run.
        run_lock: the actor of run_lock.RunLock.
        device: of this worker.
    """

    def __init__(self, config: TrainConfig, *, num_steps: int, run_lock: Any, device: torch.device) -> None:
        self._config, self._num_steps, self._device = config, num_steps, device
        context = ray.train.get_context()
        self._num_workers = context.get_world_size()
        self._asked = self._saved = time.monotonic()
        self._leave_asked = run_lock.asked.remote() if context.get_world_rank() == 0 else None

    def after(self, num_steps: int) -> Decision:
        """What to do after so many steps. All workers call it."""
        word = self._from_first(self._decide(num_steps) if self._leave_asked is not None else 0)
        if word & _ASK and ray.train.get_preemption_info() is not None:
            word |= _SAVE | _LEAVE
        if word & _SAVE:
            self._saved = time.monotonic()
        return Decision(bool(word & _SAVE), bool(word & _LEAVE))

    def _decide(self, num_steps: int) -> int:
        """The first worker's word."""
        config, now, word = self._config, time.monotonic(), 0
        if num_steps % config.checkpoint_every_steps == 0 or num_steps == self._num_steps:
            word |= _SAVE
        if config.checkpoint_every_minutes and now - self._saved >= 60 * config.checkpoint_every_minutes:
            word |= _SAVE
        if ray.wait([self._leave_asked], timeout=0)[0]:
            ray.get(self._leave_asked)  # an actor that is gone says nothing, it fails
            word |= _SAVE | _LEAVE
        if now - self._asked >= ASK_SECONDS:
            self._asked = now
            word |= _ASK
        return word

    def _from_first(self, word: int) -> int:
        if self._num_workers == 1:
            return word
        message = torch.tensor(word, device=self._device)
        dist.broadcast(message, src=0)
        return int(message)
