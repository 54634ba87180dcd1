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
import torch

from cluster import storage
from jobs.launch import launch
from jobs.pretrain import PretrainJob, main
from pipeline.model import model_folder
from pipeline.model.clip import CLIP
from pipeline.model.config import MODELS
from pipeline.model.model_folder import Model
from pipeline.model.tokenizer import Tokenizer
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


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_local")
def test_a_run_starts_from_the_weights_of_another_and_keeps_to_them(job: PretrainJob, tmp_path: Path) -> None:
    """At a rate that moves nothing, what comes out is what went in, with the vocabulary that it came with."""
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

    main(started)  # is finished, and of these weights
    with pytest.raises(ValueError, match=r'it differs in start_from: "[0-9a-f]{64}" there, null asked for'):
        main(replace(started, start_from=None))
    with torch.no_grad():
        network.logit_scale.add_(1e-3)
    model_folder.save(start, tmp_path / "start")
    with pytest.raises(ValueError, match=r'start_from: "[0-9a-f]{64}" there, "[0-9a-f]{64}" asked for'):
        main(started)


def test_weights_of_another_model_are_refused_before_anything_is_written(job: PretrainJob, tmp_path: Path) -> None:
    config = MODELS["tiny"]
    tokenizer = Tokenizer.train(["a red card"], 1024, config.text.context_length)
    other = replace(config, embed_dim=64, text=replace(config.text, vocab_size=tokenizer.vocab_size))
    model_folder.save(Model(CLIP(other), tokenizer), tmp_path / "other")
    output = tmp_path / "run"
    with pytest.raises(ValueError, match=r"start_from=.*other: .* embed_dim is 64 there and 128 here"):
        main(replace(job, output=str(output), start_from=str(tmp_path / "other")))
    assert not output.exists()
