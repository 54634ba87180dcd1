"""Steps that are not taken because something in them is not finite."""

import logging
import math

import torch
from torch import nn

logger = logging.getLogger("clip")


class NonFiniteGuard:
    """Decides whether a step is taken, and undoes what it has moved already: the statistics of batch norms.

    A step whose loss or gradient is not finite leaves weights, the optimizer with its count of steps, and statistics as
    they were; the next one is another batch, and the schedule goes on. Loss and gradient are of the global batch and
    alike on all ranks, so all decide alike without asking each other; both were read from the device anyway.
    """

    def __init__(self, network: nn.Module, max_skipped_steps: int) -> None:
        """Watch a network.

        Args:
            network: that is trained.
            max_skipped_steps: steps in a row that may be skipped; with one more the run ends.
        """
        self._network, self._max_skipped_steps = network, max_skipped_steps
        self._in_a_row = 0
        self._before: list[torch.Tensor] = []

    def remember(self) -> None:
        """A step begins: what it will move before anyone knows whether it is taken."""
        self._before = [buffer.clone() for buffer in self._network.buffers()]

    def allows(self, step: int, loss: float, gradient_norm: float) -> bool:
        """Whether the step is to be taken; if not, the network is as it was when `remember` was called.

        Args:
            step: its number, 1 is the first; for messages.
            loss: of the global batch.
            gradient_norm: of the whole gradient.

        Raises:
            FloatingPointError: too many in a row were not.
        """
        if math.isfinite(loss) and math.isfinite(gradient_norm):
            self._in_a_row = 0
            return True
        for buffer, before in zip(self._network.buffers(), self._before, strict=True):
            buffer.copy_(before)
        self._in_a_row += 1
        what = f"step {step}: the loss is {loss}, the norm of the gradient {gradient_norm}"
        if self._in_a_row > self._max_skipped_steps:
            raise FloatingPointError(
                f"{what}; {self._in_a_row} steps in a row were not finite, train.max_skipped_steps="
                f"{self._max_skipped_steps} are allowed. Start a new run with a lower train.learning_rate, a longer "
                "train.warmup_steps, or train.max_gradient_norm set; if it was the first step, look at the images"
            )
        logger.warning("%s; the step is skipped", what)
        return False
