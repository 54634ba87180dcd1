import json
import logging
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from botocore.exceptions import EndpointConnectionError
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from cluster import storage
from pipeline.train.checkpoints.checkpoint import Progress
from pipeline.train.checkpoints.storage_protocol import Storage
from pipeline.train.config import TrainConfig
from pipeline.train.step.gradients import StepResult
from pipeline.train.telemetry import metrics
from pipeline.train.telemetry.curves import draw_curves
from pipeline.train.telemetry.metrics import Recorder, StepRecord, read_metrics, read_validation

CONFIG = TrainConfig(global_batch_size=8, log_every_steps=2, num_workers=1)


def result(loss: float) -> StepResult:
    return StepResult(loss=loss, accuracy_image_to_text=0.25, accuracy_text_to_image=0.5)


STEP = StepRecord(
    num_steps=1, result=result(1.0), logit_scale=14.0, learning_rate=0.1, gradient_norm=2.0, waited_seconds=0.0,
    taken=True,
)  # fmt: skip


def record(output: str | Path, steps: range, done: Progress, files: Storage = storage) -> Progress:
    """Record steps of a run of 10 steps. The loss at step n is 1 / n."""
    recorder = Recorder(
        str(output), files, CONFIG, done, num_steps=10, steps_per_epoch=4, device=torch.device("cpu"),
        utilisation_per_rate=1e-6,
    )  # fmt: skip
    for step in steps:
        recorder.step(replace(STEP, num_steps=step, result=result(1 / step)))
    progress = recorder.flush()
    recorder.close()
    return progress


def test_a_row_is_written_every_few_steps_and_at_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "clip"):
        progress = record(tmp_path, range(1, 11), Progress(0, 0.0))
    rows = read_metrics(str(tmp_path), storage)
    assert [row.step for row in rows] == [2, 4, 6, 8, 10]
    assert [row.loss for row in rows] == [1 / row.step for row in rows]
    assert [row.epoch for row in rows] == [0.5, 1.0, 1.5, 2.0, 2.5]
    assert [row.images_seen for row in rows] == [8 * row.step for row in rows]
    assert all(row.samples_per_second > 0 and row.peak_memory_gib > 0 for row in rows)
    assert all(row.mfu == pytest.approx(1e-6 * row.samples_per_second) for row in rows)
    assert progress.num_steps == 10
    assert progress.seconds >= rows[-1].seconds > 0
    assert "step 10/10: loss 0.100, accuracy 25% and 50%" in caplog.text


def test_rows_beyond_the_checkpoint_are_dropped_on_resume(tmp_path: Path) -> None:
    record(tmp_path, range(1, 9), Progress(0, 0.0))
    record(tmp_path, range(5, 11), Progress(4, 100.0))
    rows = read_metrics(str(tmp_path), storage)
    assert [row.step for row in rows] == [2, 4, 6, 8, 10]
    assert rows[1].seconds < 100 < rows[2].seconds
    assert all(json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())


def test_tensorboard_has_every_metric(tmp_path: Path) -> None:
    record(tmp_path, range(1, 11), Progress(0, 0.0))
    (events,) = (tmp_path / "tensorboard").iterdir()
    steps_of: dict[str, list[int]] = {}
    for event in EventFileLoader(str(events)).Load():
        for value in event.summary.value:
            steps_of.setdefault(value.tag, []).append(event.step)
    row = asdict(read_metrics(str(tmp_path), storage)[0])
    assert steps_of == {name: [2, 4, 6, 8, 10] for name in row if name != "step"}


@pytest.fixture(params=["local", "s3"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else f"{request.getfixturevalue('s3')}/{tmp_path.name}"


def test_tensorboard_shows_each_step_once_after_a_resumption(output: str, tmp_path: Path) -> None:
    """The events that a killed job logged after its last checkpoint are hidden, although their file is kept."""
    record(output, range(1, 9), Progress(0, 0.0))
    record(output, range(5, 11), Progress(4, 100.0))
    shown = tmp_path / "shown"
    shown.mkdir()
    for uri in storage.list_files(f"{output}/tensorboard"):
        (shown / Path(uri).name).write_bytes(storage.read_bytes(uri))
    board = EventAccumulator(str(shown)).Reload()
    assert [(event.step, event.value) for event in board.Scalars("loss")] == [
        (step, pytest.approx(1 / step)) for step in (2, 4, 6, 8, 10)
    ]


@dataclass
class SlowStorage:
    """A storage whose writes advance the clock `now`, and which refuses to write URIs that contain `refuse`."""

    now: float = 0.0
    seconds: float = 0.0
    writes: int = 0
    refuse: str = "nothing"

    def write_bytes(self, uri: str, data: bytes) -> None:
        if self.refuse in uri:
            raise EndpointConnectionError(endpoint_url=uri)
        self.now += self.seconds
        self.writes += 1
        storage.write_bytes(uri, data)

    def __getattr__(self, name: str) -> Any:
        return getattr(storage, name)


def test_a_failed_write_of_tensorboard_does_not_end_training(output: str, caplog: pytest.LogCaptureFixture) -> None:
    if not storage.is_s3(output):
        (Path(output) / "tensorboard").touch()  # in place of the folder
    with caplog.at_level(logging.WARNING, "clip"):
        record(output, range(1, 11), Progress(0, 0.0), SlowStorage(refuse="/tensorboard/"))
    assert [row.step for row in read_metrics(output, storage)] == [2, 4, 6, 8, 10]
    assert caplog.text.count("cannot write TensorBoard events") == 1


def test_writing_takes_at_most_a_small_share_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even with slow writes. After `flush` every row is written, so that a resumed run misses none."""
    slow = SlowStorage(seconds=2.0)
    monkeypatch.setattr(metrics, "time", SimpleNamespace(monotonic=lambda: slow.now))
    recorder = Recorder(
        str(tmp_path), slow, CONFIG, Progress(0, 0.0), num_steps=2000, steps_per_epoch=4, device=torch.device("cpu")
    )
    for step in range(1, 1001):
        slow.now += 5.0
        recorder.step(replace(STEP, num_steps=step, result=result(1 / step)))
    assert 10 < slow.writes < 0.012 * slow.now / slow.seconds
    assert recorder.flush().num_steps == 1000
    assert [row.step for row in read_metrics(str(tmp_path), storage)] == list(range(2, 1001, 2))
    recorder.close()


def test_metrics_that_an_objective_lacks_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder(
        str(tmp_path), storage, CONFIG, Progress(8, 0.0), num_steps=10, steps_per_epoch=4, device=torch.device("cpu")
    )
    with caplog.at_level(logging.INFO, "clip"):
        for step in (9, 10):
            recorder.step(replace(STEP, num_steps=step, result=StepResult(loss=0.5), logit_scale=None))
    recorder.close()
    (row,) = read_metrics(str(tmp_path), storage)
    assert row.accuracy_image_to_text is row.accuracy_text_to_image is row.logit_scale is None
    assert "null" not in (tmp_path / "metrics.jsonl").read_text()
    assert "loss 0.500, " in caplog.text
    assert "accuracy" not in caplog.text


def test_validation_scores_are_written_and_resumed(tmp_path: Path) -> None:
    for start, scores in ((0, (0.25, 0.5)), (4, (0.75,))):
        recorder = Recorder(
            str(tmp_path), storage, CONFIG, Progress(start, 0.0), num_steps=10, steps_per_epoch=4,
            device=torch.device("cpu"),
        )  # fmt: skip
        for number, value in enumerate(scores):
            recorder.validated(start + 4 * (number + 1), {"pairs/r@1": value, "shape": 1.0})
        recorder.close()
    rows = read_validation(str(tmp_path), storage)
    assert [row.step for row in rows] == [4, 8], "step 8 was validated again after the resumption at step 4"
    assert [row.images_seen for row in rows] == [32, 64]
    assert [row.scores["pairs/r@1"] for row in rows] == [0.25, 0.75]
    tags = [
        value.tag
        for events in (tmp_path / "tensorboard").iterdir()
        for event in EventFileLoader(str(events)).Load()
        for value in event.summary.value
    ]
    assert tags.count("validation/shape") == 3


def test_skipped_steps_are_counted_and_their_losses_are_left_out(tmp_path: Path) -> None:
    done = Progress(4, 0.0, skipped_steps=3)
    recorder = Recorder(
        str(tmp_path), storage, CONFIG, done, num_steps=10, steps_per_epoch=4, device=torch.device("cpu")
    )
    for step, loss in enumerate((0.5, float("nan"), 0.4, 0.3, 0.2, float("inf")), start=5):
        recorder.step(
            replace(STEP, num_steps=step, result=result(loss), gradient_norm=2 * loss, taken=math.isfinite(loss))
        )
    assert recorder.flush().skipped_steps == 5
    recorder.close()
    rows = read_metrics(str(tmp_path), storage)
    assert [row.skipped_steps for row in rows] == [4, 4, 5]
    assert [math.isnan(row.loss) for row in rows] == [True, False, True]
    assert math.isnan(rows[0].gradient_norm)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert ["loss" in json.loads(line, parse_constant=pytest.fail) for line in lines] == [False, True, False]
    assert draw_curves(rows).startswith(b"\x89PNG")


def test_a_run_without_metrics_has_no_rows(tmp_path: Path) -> None:
    assert read_metrics(str(tmp_path), storage) == []
