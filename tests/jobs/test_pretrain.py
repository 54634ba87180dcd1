"""jobs.pretrain, run through its command line, including runs that are killed."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import ray
import torch

from cluster import storage
from jobs.options.launch import launch
from jobs.pretrain import PretrainJob, main
from pipeline.data.snapshots.commit import commit
from pipeline.data.snapshots.snapshot import QUERY_COUNTS
from pipeline.model.config import MODELS
from pipeline.model.objectives.clip import CLIP
from pipeline.model.tokenizer.tokenizer import Tokenizer
from pipeline.model.weights import model_folder
from pipeline.model.weights.model_folder import Model
from pipeline.train.config import TrainConfig
from pipeline.train.telemetry.metrics import read_metrics
from tests.pipeline.train.pairs import write_snapshot

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "jobs" / "configs" / "tiny.toml"
TRAIN = TrainConfig(
    global_batch_size=16,
    epochs=6,
    warmup_steps=4,
    precision="fp32",
    shuffle_row_groups=4,
    num_workers=2,
    log_every_steps=1,
    checkpoint_every_steps=5,
)
KILL_TIMEOUT_SECONDS = 250


def arguments(job: PretrainJob) -> list[str]:
    """The command line of a job, as a list of options."""
    train = {name: value for name, value in asdict(job.train).items() if name != "keep_models_at" and value is not None}
    options = {f"train.{name}": value for name, value in train.items()}
    return [f"--{name}={value}" for name, value in {"snapshot": job.snapshot, "output": job.output, **options}.items()]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> PretrainJob:
    folder = tmp_path_factory.mktemp("pretrain")
    write_snapshot(folder / "set", 64)
    return PretrainJob(snapshot=str(folder / "set"), output=str(folder / "whole"), train=TRAIN)


def test_tiny_toml_configures_the_job(job: PretrainJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    launched: list[PretrainJob] = []

    def main(job: PretrainJob) -> None:
        launched.append(job)

    monkeypatch.setattr(signal, "signal", lambda *_: None)
    launch(PretrainJob, main, [f"--config={CONFIG}", f"--snapshot={job.snapshot}", f"--output={tmp_path}"])
    assert launched[0].model == "tiny"
    assert launched[0].train.num_workers == 2
    assert launched[0].train.weight_decay == 0.2, "options that the file does not set have the paper's values"


def test_the_error_for_a_missing_snapshot_names_it(job: PretrainJob, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: no snapshot yet"):
        main(replace(job, snapshot=str(tmp_path / "nowhere")))


@pytest.mark.faults
@pytest.mark.cluster
@pytest.mark.usefixtures("ray_local")
def test_a_run_that_was_killed_and_stopped_follows_the_curve_of_an_uninterrupted_run(
    job: PretrainJob, tmp_path: Path
) -> None:
    """After a stop (SIGTERM, as sent by `ray job stop`), the run has time to save a checkpoint."""
    # One worker: tests/faults/test_training.py tests two. A set chunk size: a run killed before its first checkpoint
    # would measure it again, and the chunk size affects how gradients are rounded.
    job = replace(job, train=replace(job.train, num_workers=1, epochs=24, chunk_size=8))
    disturbed = replace(job, output=str(tmp_path / "run"))
    with started(disturbed) as process:
        process.kill()
    with started(disturbed) as process:
        before = saved(disturbed)[-1]
        process.terminate()
        stopped_at = time.monotonic()
        assert process.wait() == 128 + signal.SIGTERM
    assert time.monotonic() - stopped_at < KILL_TIMEOUT_SECONDS / 10
    assert saved(disturbed)[-1] > before, "no step is lost"

    main(disturbed)
    main(job)
    rows, expected = (read_metrics(run.output, storage) for run in (disturbed, job))
    assert [row.step for row in rows] == list(range(1, 97)), "every step once"
    for row, wanted in zip(rows, expected, strict=True):
        assert row.loss == pytest.approx(wanted.loss, rel=1e-5), row.step
        assert row.gradient_norm == pytest.approx(wanted.gradient_norm, rel=1e-4), row.step
    assert (Path(disturbed.output) / "result.json").exists()


def saved(job: PretrainJob) -> list[str]:
    """The names of the complete checkpoints, the newest last."""
    return sorted(path.parent.name for path in Path(job.output).glob("checkpoints/*/manifest.json"))


@contextlib.contextmanager
def started(job: PretrainJob) -> Iterator[subprocess.Popen[bytes]]:
    """Start the job as a process, and wait for its first new checkpoint. It must not finish before the block ends."""
    newest, begun = max(saved(job), default=""), time.monotonic()
    address, log = ray.get_runtime_context().gcs_address, Path(f"{job.output}.log")
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "jobs.pretrain", *arguments(job), f"--session.address={address}"],
            cwd=ROOT, stdout=file, stderr=file, start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"},  # a local Ray has no authentication
        )  # fmt: skip
        while max(saved(job), default="") == newest and time.monotonic() < begun + KILL_TIMEOUT_SECONDS:
            assert process.poll() is None, log.read_text()
            time.sleep(0.02)
        try:
            assert max(saved(job)) > newest, log.read_text()
            yield process
        finally:
            process.kill()
            process.wait()
    assert not (Path(job.output) / "result.json").exists(), "the run finished before it was interrupted"


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model=ViT-B/31"], "model=ViT-B/31 is not known; did you mean ViT-B/32"),
        (["--objective=clip"], "--objective: expected one of"),
        (["--train.global_batch_size=65"], "global_batch_size=65 is more than the snapshot's 64 pairs"),
        (["--train.num_workers=9"], "need 9 CPUs and the cluster has 4"),
        (["--train.min_workers=9", "--train.max_workers=12"], "need 9 CPUs and the cluster has 4"),
        (["--train.num_workers=4"], "would take all 4 CPUs of the cluster and leave none to read their input"),
        (["--train.gpus_per_worker=1"], "need 2 GPUs and the cluster has 0"),
        (["--train.chunk_size=0"], "chunk_size=0: must be above zero"),
        (["--validation.datasets=nowhere"], "nothing at 'nowhere'"),
        (["--validation.batch_size=0"], "validation.batch_size = 0: must be at least 1"),
    ],
)
def test_invalid_options_end_with_one_line(
    job: PretrainJob, tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit, match="2"):
        launch(PretrainJob, main, [*arguments(replace(job, output=str(tmp_path / "run"))), *options])
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("missing", ["data/part-00001.parquet", "all"])
@pytest.mark.cluster
@pytest.mark.usefixtures("ray_local")
def test_a_snapshot_without_a_shard_or_without_any(job: PretrainJob, tmp_path: Path, missing: str) -> None:
    """The error names a missing shard, or reports that the snapshot is empty."""
    snapshot = tmp_path / "set"
    error: type[Exception]
    if missing == "all":
        commit(str(snapshot), [], QUERY_COUNTS.empty_table(), {})
        error, message = ValueError, "global_batch_size=16 is more than the snapshot's 0 pairs"
    else:
        shutil.copytree(job.snapshot, snapshot)
        (snapshot / missing).unlink()
        error, message = FileNotFoundError, f"{missing}: this shard of the snapshot is gone"
    with pytest.raises(error, match=message):
        main(replace(job, snapshot=str(snapshot), output=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


@pytest.mark.faults
@pytest.mark.cluster
@pytest.mark.usefixtures("ray_local")
def test_a_run_starts_from_given_weights_and_is_not_resumed_with_others(job: PretrainJob, tmp_path: Path) -> None:
    """With a learning rate close to zero, the trained model has the weights and vocabulary of the start."""
    torch.manual_seed(5)
    tokenizer = Tokenizer.train(["a red card", "a card"], 1024, 32)
    config = replace(MODELS["tiny"], text=replace(MODELS["tiny"].text, vocab_size=tokenizer.vocab_size))
    network = CLIP(config)
    start = Model(network, tokenizer)
    model_folder.save(start, tmp_path / "start")
    train = replace(TRAIN, global_batch_size=64, epochs=2, learning_rate=1e-9, num_workers=1)
    started = replace(job, output=str(tmp_path / "run"), start_from=str(tmp_path / "start"), train=train)
    main(started)
    found = model_folder.load(tmp_path / "run" / "model")
    assert found.tokenizer.to_json() == tokenizer.to_json()
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(found.network.state_dict()[name], tensor, atol=1e-6, rtol=1e-6)

    main(started)  # the run is finished, and its weights are unchanged
    with pytest.raises(ValueError, match=r'it differs in start_from: "[0-9a-f]{64}" recorded, null requested'):
        main(replace(started, start_from=None))
    with torch.no_grad():
        network.logit_scale.add_(1e-3)
    model_folder.save(start, tmp_path / "start")
    with pytest.raises(ValueError, match=r'start_from: "[0-9a-f]{64}" recorded, "[0-9a-f]{64}" requested'):
        main(started)


def test_weights_of_another_model_are_refused_before_anything_is_written(job: PretrainJob, tmp_path: Path) -> None:
    config = MODELS["tiny"]
    tokenizer = Tokenizer.train(["a red card"], 1024, config.text.context_length)
    other = replace(config, embed_dim=64, text=replace(config.text, vocab_size=tokenizer.vocab_size))
    model_folder.save(Model(CLIP(other), tokenizer), tmp_path / "other")
    output = tmp_path / "run"
    with pytest.raises(ValueError, match=r"start_from=.*other: .* embed_dim is 64 in the weights, 128 in the model"):
        main(replace(job, output=str(output), start_from=str(tmp_path / "other")))
    assert not output.exists()
