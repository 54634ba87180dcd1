"""Check, start, resume and finish a pretraining run.

A run is a folder. Running it again resumes from its last checkpoint, and does nothing once result.json exists.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
from dataclasses import replace
from functools import partial
from typing import Any

import ray
import torch
from ray.exceptions import RayError

from cluster import storage
from cluster.ray_private.train import PREEMPTION_POLL_INTERVAL_S_ENV_VAR
from cluster.runs import Run, identity
from pipeline.model.weights.model_folder import MODEL_FILES
from pipeline.train.checkpoints.background_saver import SavedCheckpoint
from pipeline.train.checkpoints.checkpoint import Progress
from pipeline.train.checkpoints.initial_weights import read_start
from pipeline.train.telemetry.curves import draw_curves
from pipeline.train.telemetry.metrics import Recorder, read_metrics, read_validation
from pipeline.train.workers.loop import train
from pipeline.train.workers.run import Pretraining
from pipeline.train.workers.run_lock import only_job
from pipeline.train.workers.step_decisions import POLL_SECONDS
from pipeline.train.workers.validation import Validation, Validator
from pipeline.train.workers.worker_group import run_workers

logger = logging.getLogger("clip")

STOP_SECONDS = 2.5
"""How long a job that is being stopped waits for its workers to save. Ray kills the job 3 s after the signal."""


def pretrain(run: Pretraining, validation: Validation | None = None) -> None:
    """Train or resume a run, and write model/, curves.png and, last, result.json. Needs a connection to Ray.

    Args:
        run: the run.
        validation: how the models of checkpoints are scored during training; None: they are not scored.

    Raises:
        ValueError: the output holds a run of another configuration or a checkpoint of another model, or the batch is
            larger than the snapshot.
        FileNotFoundError: a shard is missing.
        FloatingPointError: too many steps in a row were not finite (nonfinite_steps.py).
    """
    run = replace(run, output=storage.absolute(run.output))  # workers have a different working directory
    run.check_batches()
    run.check_shards_exist()
    start, start_sha256 = read_start(run.start_from, run.model, storage) if run.start_from else (None, None)
    Run.open(
        run.output,
        {
            "snapshot_id": run.snapshot_id, "model": run.model.to_dict(), "train": identity(run.train),
            "start_from": start_sha256,
        },
    )  # fmt: skip
    result_uri = storage.join(run.output, "result.json")
    if storage.exists(result_uri):
        logger.info("%s exists: this run is finished, nothing to do", result_uri)
        return
    _note_take_downs(run)
    if start:
        run.keep_start(start)
    tokenizer = run.tokenizer()
    run.check_checkpoint_model(tokenizer)
    with only_job(run.output) as run_lock:
        _train(run, tokenizer.to_json(), run_lock, validation)
        if validation:
            _validate_last(run, validation)
    rows = read_metrics(run.output, storage)
    curves = draw_curves(rows, read_validation(run.output, storage))
    storage.write_bytes(storage.join(run.output, "curves.png"), curves)
    result = {
        "samples_per_second": rows[-1].images_seen / rows[-1].seconds,
        "num_steps": rows[-1].step,
        "images_seen": rows[-1].images_seen,
        "final_loss": next((row.loss for row in reversed(rows) if math.isfinite(row.loss)), None),
        "model": storage.join(run.output, "model"),
        "snapshot_id": run.snapshot_id,
    }
    storage.write_bytes(result_uri, json.dumps(result, indent=1).encode())


def _train(run: Pretraining, tokenizer_json: str, run_lock: Any, validation: Validation | None) -> None:
    """Run workers until the last step.

    Workers that left because nodes were added or removed are restarted at once. If this process is being stopped, the
    workers get STOP_SECONDS to save.
    """
    os.environ.setdefault(PREEMPTION_POLL_INTERVAL_S_ENV_VAR, str(POLL_SECONDS))
    work = partial(train, run, tokenizer_json, run_lock, validation)
    reserved = validation.pool if validation else None
    try:
        while (num_steps := run_workers(run, work, run_lock, reserved)) < run.num_steps():
            logger.warning("nodes were added or removed: saved at step %d, restarting on the present nodes", num_steps)
    except (SystemExit, KeyboardInterrupt):
        with contextlib.suppress(RayError):
            ray.get(run_lock.save_and_leave.remote(), timeout=STOP_SECONDS)
        raise


def _validate_last(run: Pretraining, validation: Validation) -> None:
    """Score the final model, after the workers have released their resources."""
    num_steps = run.num_steps()
    if any(row.step == num_steps for row in read_validation(run.output, storage)):
        return  # scored by an earlier job, which was stopped before it wrote the result
    uris = {name: storage.join(run.output, "model", name) for name in MODEL_FILES}
    validator = Validator(validation)
    validator.begin(SavedCheckpoint(num_steps, {name: storage.read_bytes(uri) for name, uri in uris.items()}))
    scores = validator.wait()
    if scores:
        recorder = Recorder(
            run.output, storage, run.train, Progress(num_steps, 0.0),
            num_steps=num_steps, steps_per_epoch=run.plan().steps_per_epoch, device=torch.device("cpu"),
        )  # fmt: skip
        recorder.validated(num_steps, scores.values)
        recorder.close()


def _note_take_downs(run: Pretraining) -> None:
    """Record how many pairs of the snapshot are taken down, and warn if the number changed since the last start."""
    uri = storage.join(run.output, "taken_down.json")
    num_pairs = sum(len(shard.taken_down) for shard in run.shards)
    before = json.loads(storage.read_bytes(uri))["num_pairs"] if storage.exists(uri) else num_pairs
    if before != num_pairs:
        logger.warning(
            "%d pairs of the snapshot are taken down, %d when this run was last started: further steps leave them out, "
            "and the rest of the epoch is planned again",
            num_pairs, before,
        )  # fmt: skip
    storage.write_bytes(uri, json.dumps({"num_pairs": num_pairs}).encode())
