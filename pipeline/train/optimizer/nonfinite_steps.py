"""Skip steps whose loss or gradient is not finite."""

import logging
import math

import torch
from torch import nn

logger = logging.getLogger("clip")


class NonFiniteGuard:
    """Decides whether to take a step; for a skipped step, restores the batch norms' statistics.

    A skipped step does not change the weights, the optimizer (including its step count) or the statistics. Training
    continues with the next batch, and the schedule advances. Loss and gradient belong to the global batch and are equal
    on all ranks, so all ranks decide alike without communication. Both values have already been read from the device.
    """

    def __init__(self, network: nn.Module, max_skipped_steps: int) -> None:
        """Guard the training of a network.

        Args:
            network: the network in training.
            max_skipped_steps: maximum number of consecutive skipped steps; one more ends the run.
        """
        self._network, self._max_skipped_steps = network, max_skipped_steps
        self._num_consecutive = 0
        self._before: list[torch.Tensor] = []

    def remember(self) -> None:
        """Save the buffers at the beginning of a step, which changes them before `allows` decides."""
        self._before = [buffer.clone() for buffer in self._network.buffers()]

    def allows(self, step: int, loss: float, gradient_norm: float) -> bool:
        """Whether to take the step; if not, the network's buffers are restored to their values at `remember`.

        Args:
            step: number of the step in messages, starting from 1.
            loss: loss of the global batch.
            gradient_norm: norm of the whole gradient.

        Raises:
            FloatingPointError: more than `max_skipped_steps` consecutive steps were not finite.
        """
        if math.isfinite(loss) and math.isfinite(gradient_norm):
            self._num_consecutive = 0
            return True
        for buffer, before in zip(self._network.buffers(), self._before, strict=True):
            buffer.copy_(before)
        self._num_consecutive += 1
        problem = f"step {step}: the loss is {loss}, the norm of the gradient is {gradient_norm}"
        if self._num_consecutive > self._max_skipped_steps:
            raise FloatingPointError(
                f"{problem}; {self._num_consecutive} steps in a row were not finite, but train.max_skipped_steps="
                f"{self._max_skipped_steps}. Start a new run with a lower train.learning_rate, more "
                "train.warmup_steps, or train.max_gradient_norm; if this was the first step, check the images"
            )
        logger.warning("%s; the step is skipped", problem)
        return False
