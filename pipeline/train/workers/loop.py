"""The training loop that every worker runs, from the last checkpoint to the end."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pipeline.data.snapshots.epoch_order import Purpose, draw
from pipeline.model.objectives.clip import CLIP
from pipeline.train.config import TrainConfig
from pipeline.train.network.sharding import whole_model
from pipeline.train.optimizer.optimizer import gradient_norm, learning_rate, optimizer_step
from pipeline.train.telemetry.metrics import StepRecord
from pipeline.train.workers.build import Worker, build
from pipeline.train.workers.run import Pretraining
from pipeline.train.workers.validation import Validation


def train(run: Pretraining, tokenizer_json: str, run_lock: Any, validation: Validation | None) -> int:
    """Train until the last step, or until this group of workers must save and leave.

    Args:
        run: the run.
        tokenizer_json: the run's tokenizer.
        run_lock: the actor of run_lock.RunLock.
        validation: how models are scored; None: they are not scored.

    Returns:
        The number of steps of the run so far, over all resumptions.

    Raises:
        FileNotFoundError, RuntimeError: as for `build`.
        FloatingPointError: too many steps in a row were not finite.
    """
    worker = build(run, tokenizer_json, run_lock, validation)
    for step in worker.steps:
        record = take_step(worker, step, run.train)
        decision = worker.decisions.after(record.num_steps)
        keeps = decision.save or record.num_steps * run.train.global_batch_size in run.train.keep_models_at
        state = worker.whole_state() if keeps else None
        if worker.rank_zero:
            worker.rank_zero.after(record, decision, state)
        if decision.leave and record.num_steps < worker.steps.stop:
            if worker.rank_zero:
                worker.rank_zero.leave()
                run_lock.saved.remote()
            return record.num_steps
    last = whole_model(worker.model)
    if worker.rank_zero:
        worker.rank_zero.finish(last)
    return worker.steps.stop


def take_step(worker: Worker, step: int, config: TrainConfig) -> StepRecord:
    """Take one step together with the other workers: gradients of the global batch, then the optimizer unless skipped.

    Args:
        worker: this rank.
        step: number of the step, from 0.
        config: the recipe.

    Raises:
        FloatingPointError: too many steps in a row were not finite.
    """
    network = worker.network
    batch, waited = worker.next_batch()
    worker.guard.remember()
    torch.manual_seed(int(draw(config.seed, Purpose.DROPOUT, step, np.array([worker.rank]))[0]))
    result = worker.chunks.set_gradients(network, batch)
    rate = learning_rate(config, step, worker.steps.stop)
    logit_scale = network.logit_scale.exp().item() if isinstance(network, CLIP) else None
    norm = gradient_norm(network)
    taken = worker.guard.allows(step + 1, result.loss, norm)
    if taken:
        optimizer_step(network, worker.optimizer, rate, norm=norm, max_norm=config.max_gradient_norm)
    return StepRecord(
        num_steps=step + 1,
        result=result,
        logit_scale=logit_scale,
        learning_rate=rate,
        gradient_norm=norm,
        waited_seconds=waited,
        taken=taken,
    )
