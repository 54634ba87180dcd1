"""A run of pretraining from the outside: what it refuses, its workers on Ray Train, and what it leaves at its end.

A run is a folder: rerunning it goes on from its last checkpoint, and does nothing once result.json is there.
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
from pipeline.train.checkpoints.background_saver import Saved
from pipeline.train.checkpoints.checkpoint import Progress
from pipeline.train.checkpoints.initial_weights import read_start
from pipeline.train.telemetry.curves import draw_curves
from pipeline.train.telemetry.metrics import Recorder, read_metrics, read_validation
from pipeline.train.workers.loop import train
from pipeline.train.workers.run import Pretraining
from pipeline.train.workers.run_lock import only_job
from pipeline.train.workers.step_decisions import ASK_SECONDS
from pipeline.train.workers.validation import Validation, Validator
from pipeline.train.workers.worker_group import run_workers

logger = logging.getLogger("clip")

STOP_SECONDS = 2.5
"""What a job that is being stopped gives its workers to save: Ray kills it 3 s after the signal."""


def pretrain(run: Pretraining, validation: Validation | None = None) -> None:
    """Train, or finish training, and write model/, curves.png and, last, result.json. Needs a connection to Ray.

    Args:
        run: what is trained on what.
        validation: how the models of its checkpoints are scored meanwhile; None: not at all.

    Raises:
        ValueError: the output is another configuration's, its checkpoint another model's, or the batch larger than the
            snapshot.
        FileNotFoundError: a shard is missing.
        FloatingPointError: too many steps in a row were not finite (nonfinite_steps.py).
    """
    run = replace(run, output=storage.absolute(run.output))  # workers have another working directory
    run.refuse_batches()
    run.refuse_missing_shards()
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
        logger.info("%s is there: this run is finished, nothing to do", result_uri)
        return
    _note_take_downs(run)
    if start:
        run.keep_start(start)
    tokenizer = run.tokenizer()
    run.refuse_other_checkpoints(tokenizer)
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
    """Have workers train to the end. Those that leave because nodes come or go are started again at once, and where
    this process is being stopped, they have a moment to save."""
    os.environ.setdefault(PREEMPTION_POLL_INTERVAL_S_ENV_VAR, str(ASK_SECONDS))
    work = partial(train, run, tokenizer_json, run_lock, validation)
    room = validation.pool if validation else None
    try:
        while (num_steps := run_workers(run, work, run_lock, room)) < run.num_steps():
            logger.warning("nodes come or go: saved at step %d, and going on with those that there are", num_steps)
    except (SystemExit, KeyboardInterrupt):
        with contextlib.suppress(RayError):
            ray.get(run_lock.ask.remote(), timeout=STOP_SECONDS)
        raise


def _validate_last(run: Pretraining, validation: Validation) -> None:
    """Score the model at the end, where its workers hold nothing any more."""
    num_steps = run.num_steps()
    if any(row.step == num_steps for row in read_validation(run.output, storage)):
        return  # by a job that was stopped before it could write the result
    places = {name: storage.join(run.output, "model", name) for name in MODEL_FILES}
    validator = Validator(validation)
    validator.begin(Saved(num_steps, {name: storage.read_bytes(place) for name, place in places.items()}))
    scores = validator.wait()
    if scores:
        recorder = Recorder(
            run.output, storage, run.train, Progress(num_steps, 0.0),
            num_steps=num_steps, steps_per_epoch=run.plan().steps_per_epoch, device=torch.device("cpu"),
        )  # fmt: skip
        recorder.validated(num_steps, scores.values)
        recorder.close()


def _note_take_downs(run: Pretraining) -> None:
    """Remember how many pairs of the snapshot are taken down, and warn where there are more than at the last start."""
    uri = storage.join(run.output, "taken_down.json")
    num_pairs = sum(len(shard.taken_down) for shard in run.shards)
    before = json.loads(storage.read_bytes(uri))["num_pairs"] if storage.exists(uri) else num_pairs
    if before != num_pairs:
        logger.warning(
            "%d pairs of the snapshot are taken down, %d when this run was last started: they are in no step from here "
            "on, and the rest of the epoch is planned anew",
            num_pairs, before,
        )  # fmt: skip
    storage.write_bytes(uri, json.dumps({"num_pairs": num_pairs}).encode())
