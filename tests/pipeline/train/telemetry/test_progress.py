import json
from pathlib import Path

import pytest

from cluster import storage
from pipeline.train.telemetry.progress import training_progress

CONFIGURATION = {"train": {"epochs": 3, "global_batch_size": 8}}


def write_run(folder: Path, steps: list[int], *, checkpoints: tuple[int, ...] = ()) -> None:
    rows = [
        {
            "step": step,
            "epoch": step / 4,
            "loss": 1 / step,
            "learning_rate": 0.1,
            "samples_per_second": 16.0,
            "data_wait_share": 0.0,
            "images_seen": 8 * step,
            "peak_memory_gib": 1.0,
            "seconds": 0.5 * step,
        }
        for step in steps
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for step in checkpoints:
        (folder / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
        (folder / "checkpoints" / f"step-{step:08d}" / "manifest.json").write_text("{}")


def test_the_newest_row_gives_the_time_left(tmp_path: Path) -> None:
    write_run(tmp_path, [2, 4], checkpoints=(2, 4))
    (tmp_path / "checkpoints" / "step-00000006").mkdir()
    (tmp_path / "checkpoints" / "step-00000006" / "progress.json").write_text("{}")  # its manifest is not written yet
    found = training_progress(str(tmp_path), CONFIGURATION, storage)
    assert found is not None
    assert (found.last.step, found.num_steps, found.checkpoints) == (4, 12, (2, 4))
    assert found.seconds_left == pytest.approx(8 * 8 / 16.0)
    assert not found.finished
    assert found.scores == {}


def test_a_finished_run_and_its_newest_scores(tmp_path: Path) -> None:
    write_run(tmp_path, [6, 12])
    (tmp_path / "result.json").write_text("{}")
    scores = [
        {"step": 6, "images_seen": 48, "scores": {"a": 0.1}},
        {"step": 12, "images_seen": 96, "scores": {"a": 0.2}},
    ]
    (tmp_path / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scores))
    found = training_progress(str(tmp_path), CONFIGURATION, storage)
    assert found is not None
    assert (found.finished, found.seconds_left, found.scores, found.checkpoints) == (True, 0.0, {"a": 0.2}, ())


def test_a_run_without_metrics_has_no_progress(tmp_path: Path) -> None:
    assert training_progress(str(tmp_path), CONFIGURATION, storage) is None
