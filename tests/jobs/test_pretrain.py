"""The job as people run it, killed in the middle among other things."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from cluster import storage
from jobs.launch import launch
from jobs.pretrain import PretrainJob, main
from pipeline.train.config import TrainConfig
from pipeline.train.metrics import read_metrics
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
KILL_TIMEOUT_SECONDS = 150


def arguments(job: PretrainJob) -> list[str]:
    """The command line of a job."""
    train = {name: getattr(TRAIN, name) for name in TRAIN.__dataclass_fields__ if name != "keep_models_at"}
    options = {f"train.{name}": value for name, value in train.items()}
    return [f"--{name}={value}" for name, value in {"snapshot": job.snapshot, "output": job.output, **options}.items()]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> PretrainJob:
    folder = tmp_path_factory.mktemp("pretrain")
    write_snapshot(folder / "set", 64)
    return PretrainJob(snapshot=str(folder / "set"), output=str(folder / "whole"), train=TRAIN)


def test_tiny_toml_is_a_configuration_of_the_job(
    job: PretrainJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[PretrainJob] = []

    def main(job: PretrainJob) -> None:
        seen.append(job)

    monkeypatch.setattr(signal, "signal", lambda *_: None)
    launch(PretrainJob, main, [f"--config={CONFIG}", f"--snapshot={job.snapshot}", f"--output={tmp_path}"])
    assert seen[0].model == "tiny"
    assert seen[0].train.num_workers == 2
    assert seen[0].train.weight_decay == 0.2, "what the file leaves out is the paper's"


def test_a_missing_snapshot_is_named(job: PretrainJob, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: no snapshot yet"):
        main(replace(job, snapshot=str(tmp_path / "nowhere")))


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_local")
def test_killed_and_run_again_it_follows_the_curve_of_an_uninterrupted_run(job: PretrainJob, tmp_path: Path) -> None:
    killed = replace(job, output=str(tmp_path / "killed"))
    checkpoint = Path(killed.output) / "checkpoints" / "step-00000005" / "manifest.json"
    address = ray.get_runtime_context().gcs_address
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jobs.pretrain", *arguments(killed), f"--session.address={address}"],
            cwd=ROOT, stdout=log, stderr=log, start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"},  # as that of a local Ray is
        )  # fmt: skip
        deadline = time.monotonic() + KILL_TIMEOUT_SECONDS
        while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
        process.wait()
    assert checkpoint.exists(), (tmp_path / "log").read_text()
    assert not (Path(killed.output) / "result.json").exists(), "it was killed too late to show anything"

    main(killed)
    main(job)
    rows, expected = (read_metrics(each.output, storage) for each in (killed, job))
    assert [row.step for row in rows] == list(range(1, 25)), "every step once"
    for row, wanted in zip(rows, expected, strict=True):
        assert row.loss == pytest.approx(wanted.loss, rel=1e-5), row.step
        assert row.gradient_norm == pytest.approx(wanted.gradient_norm, rel=1e-4), row.step
    assert (Path(killed.output) / "result.json").exists()
