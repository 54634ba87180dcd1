"""jobs.objectives on a small scale, on Ray."""

import logging
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.objectives import ObjectivesJob, main
from pipeline.eval.report.objectives import CURVES
from pipeline.model import config
from pipeline.train.config import TrainConfig
from tests.pipeline.eval.pictures import make_sets
from tests.pipeline.train.pairs import MODEL, write_snapshot


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ObjectivesJob:
    monkeypatch.setattr(config, "MODELS", {"small": MODEL})
    snapshot = write_snapshot(tmp_path / "pairs", 48)
    make_sets(tmp_path / "sets")
    recipe = TrainConfig(
        global_batch_size=16, epochs=2, learning_rate=3e-3, warmup_steps=1, precision="fp32", shuffle_row_groups=3,
        chunk_size=8, log_every_steps=1, max_failures=0,
    )  # fmt: skip
    return ObjectivesJob(
        snapshot=snapshot.uri, datasets=str(tmp_path / "sets"), output=str(tmp_path / "out"), model="small",
        objectives=("bag", "caption"), seeds=(0,), num_models=2, train=recipe,
    )  # fmt: skip


@pytest.mark.faults
@pytest.mark.cluster
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("ray_local")
def test_objectives_are_trained_scored_and_drawn_and_a_rerun_does_nothing(
    job: ObjectivesJob, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    main(replace(job, objectives=("caption",)))
    main(job)
    curves = pq.read_table(tmp_path / "out" / "curves.parquet")
    assert curves.schema == CURVES
    assert curves["objective"].to_pylist() == ["bag", "bag", "caption", "caption"]
    assert curves["images_seen"].to_pylist() == [64, 96] * 2
    assert set(curves["set"].to_pylist()) == {"colours"}  # the retrieval set is not scored
    assert all(0 <= accuracy <= 1 for accuracy in curves["accuracy"].to_pylist())
    assert (tmp_path / "out" / "figure2.png").read_bytes().startswith(b"\x89PNG")
    assert "Objectives compared" in (tmp_path / "out" / "report.html").read_text()
    metrics = (tmp_path / "out" / "runs" / "bag-0" / "metrics.jsonl").read_text()
    assert "loss" in metrics
    assert "accuracy" not in metrics
    assert "logit_scale" not in metrics

    folders = ("runs", "features")
    files = {f: f.stat().st_mtime_ns for name in folders for f in (tmp_path / "out" / name).rglob("*") if f.is_file()}
    caplog.clear()
    with caplog.at_level(logging.INFO, "clip"):
        main(job)
    assert caplog.text.count("this run is finished") == 2
    assert {file: file.stat().st_mtime_ns for file in files} == files


def test_invalid_options_are_refused(job: ObjectivesJob, tmp_path: Path) -> None:
    for file in (tmp_path / "sets" / "colours").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match="contains no set of the kind classification"):
        main(job)
    with pytest.raises(ValueError, match="seeds: give at least one"):
        replace(job, seeds=())
    with pytest.raises(ValueError, match="keep_models_at=17: must be a multiple of global_batch_size=16"):
        replace(job.train, keep_models_at=(17,))
