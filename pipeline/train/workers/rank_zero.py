"""Write the outputs of a run on the first worker: metrics, checkpoints, kept models, validation scores."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from cluster import storage
from pipeline.model.config import ModelConfig
from pipeline.model.objectives.loss import num_ranks
from pipeline.model.weights.model_folder import Model
from pipeline.train.checkpoints.background_saver import BackgroundSaver, SavedCheckpoint
from pipeline.train.checkpoints.checkpoint import Checkpoint, Progress
from pipeline.train.costs.flops import utilisation_per_rate
from pipeline.train.step.chunks import Chunks
from pipeline.train.telemetry.metrics import Recorder, StepRecord
from pipeline.train.workers.run import Pretraining, kept_model, write_model
from pipeline.train.workers.step_decisions import Decision
from pipeline.train.workers.validation import Scores, Validation, Validator


class RankZero:
    """Writes metrics, checkpoints and models between steps, and has checkpoints validated.

    Args:
        run: the run.
        config: the model that is trained.
        done: progress of the checkpoint that the run resumes from.
        device: device of this worker.
        chunks: chooses this worker's chunk size.
        validation: how models are scored; None: they are not scored.
    """

    def __init__(
        self,
        run: Pretraining,
        config: ModelConfig,
        done: Progress,
        device: torch.device,
        chunks: Chunks,
        validation: Validation | None,
    ) -> None:
        self._run, self._chunks = run, chunks
        steps_per_epoch = run.plan().steps_per_epoch
        self._recorder = Recorder(
            run.output, storage, run.train, done,
            num_steps=run.num_steps(), steps_per_epoch=steps_per_epoch, device=device,
            utilisation_per_rate=utilisation_per_rate(config, device, num_ranks()),
        )  # fmt: skip
        checkpoints = run.checkpoints()
        checkpoints.collect(done.num_steps)
        self._saver = BackgroundSaver(checkpoints)
        self._validator = Validator(validation) if validation else None

    def after(
        self,
        record: StepRecord,
        decision: Decision,
        state: tuple[Model, dict[str, Any]] | None,
    ) -> None:
        """Record a step, and write the model and the checkpoint that are due after it.

        Args:
            record: the step, taken or skipped.
            decision: what all workers do after the step.
            state: the model and the optimizer's state if one of them is due to be written, else None.
        """
        self._recorder.step(record)
        images_seen = record.num_steps * self._run.train.global_batch_size
        if images_seen in self._run.train.keep_models_at:
            assert state is not None
            write_model(state[0], kept_model(self._run.output, images_seen))
        self._validate(self._saver.finished())
        if self._validator:
            self._record(self._validator.finished())
        if decision.save:
            self._validate(self._saver.wait())
            progress = replace(self._recorder.flush(), chunk_size=self._chunks.size)
            assert state is not None
            self._saver.begin(Checkpoint(*state, progress))

    def leave(self) -> None:
        """Wait until the checkpoint is written, before the workers leave an unfinished run."""
        self._saver.wait()
        self._recorder.close()

    def finish(self, model: Model) -> None:
        """Wait for the checkpoint of the last step, and write the final model.

        The final model is scored after the workers have left (trainer.py). This function waits for no validation,
        because a validation task may be waiting for the workers' resources.
        """
        self._saver.wait()
        write_model(model, storage.join(self._run.output, "model"))
        if self._validator:
            self._record(self._validator.finished())
        self._recorder.close()

    def _validate(self, saved: SavedCheckpoint | None) -> None:
        if saved and self._validator:
            self._validator.begin(saved)

    def _record(self, scores: Scores | None) -> None:
        if scores:
            self._recorder.validated(scores.num_steps, scores.values)
