"""Train a small network to memorise a few pairs, to compare optimizer settings."""

from dataclasses import replace

import torch

from pipeline.model.objectives.clip import CLIP
from pipeline.train.config import TrainConfig
from pipeline.train.network.bf16_text_weights import halve_text_weights
from pipeline.train.optimizer.optimizer import learning_rate, make_optimizer, optimizer_step
from pipeline.train.step.gradients import Batch, set_gradients
from tests.pipeline.model.models import CONFIG, small_batch


def losses(config: TrainConfig, num_steps: int, seed: int = 0) -> list[float]:
    """Losses of the steps, each on one third of the pairs in turn.

    The seed determines the initial weights. There is no dropout: only stochastic rounding draws random numbers.
    """
    torch.manual_seed(seed)
    image = replace(CONFIG.image, options={**CONFIG.image.options, "drop_rate": 0.0})
    network = CLIP(replace(CONFIG, image=image)).train()
    if config.text_weights == "bf16":
        halve_text_weights(network)
    optimizer = make_optimizer(network, config)
    size = config.global_batch_size
    images, tokens, lengths = small_batch(3 * size)
    step_losses = []
    for step in range(num_steps):
        rows = slice(size * (step % 3), size * (step % 3 + 1))
        batch = Batch(images[rows], tokens[rows], lengths[rows])
        step_losses.append(set_gradients(network, batch, chunk_size=size, bf16=True).loss)
        optimizer_step(network, optimizer, learning_rate(config, step, num_steps))
    return step_losses
