import datetime
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest

from cluster.progress import EVENTS_FILE, StageProgress, stage_progress
from cluster.runs import Run
from cluster.telemetry import Events


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.open(str(tmp_path / "run"), {"seed": 1})


def write_parts(run: Run, name: str, num_parts: int, indices: range, generation: int = 0) -> None:
    stage = run.stage(name, num_parts, generation)
    for index in indices:
        stage.write(index, pa.table({"value": np.arange(3) + 10 * generation}))


def events_at(run: Run, *events: tuple[float, str, dict[str, object]]) -> None:
    log = Events(f"{run.uri}/{EVENTS_FILE}")
    for seconds, event, fields in events:
        moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
        with mock.patch("cluster.telemetry.datetime") as patched:
            patched.datetime.now.return_value = moment
            patched.UTC = datetime.UTC
            log.append(event, **fields)


def started(run: Run, name: str, num_parts: int, pending: int, generation: int = 0) -> dict[str, object]:
    uri = run.stage(name, num_parts).uri
    return {"stage": name, "uri": uri, "parts": num_parts, "pending": pending, "generation": generation}


def ended(name: str, num_parts: int, seconds: float) -> dict[str, object]:
    return {"stage": name, "parts": num_parts, "seconds": seconds, "kept": 9, "dropped": 2}


def test_a_run_without_events_has_no_stages(run: Run) -> None:
    assert stage_progress(run) == []


def test_stages_are_in_the_order_of_the_flow(run: Run) -> None:
    events_at(
        run,
        (10.0, "stage_started", started(run, "unique", 4, 4)),
        (15.0, "stage", ended("unique", 4, 5.0)),
        (15.0, "step", {"step": "of another kind", "seconds": 1.0}),
        (16.0, "stage_started", started(run, "fetched", 2, 2)),
        (17.0, "stage", ended("fetched", 2, 1.0)),
        (18.0, "stage_started", started(run, "counts", 8, 8)),
    )
    found = stage_progress(run, now=20.0)
    assert [(stage.name, stage.running) for stage in found] == [("unique", False), ("fetched", False), ("counts", True)]
    assert found[0] == StageProgress(name="unique", num_parts=4, num_complete=4, seconds=5.0, kept=9, dropped=2)
    assert found[2].seconds == pytest.approx(2.0)
    assert found[2].parts_per_second is found[2].seconds_left is None


def test_a_running_stage_has_a_rate_and_the_time_left(run: Run) -> None:
    write_parts(run, "fetched", 10, range(6))
    last = max(run.stage("fetched", 10).completion_times())
    events_at(run, (last - 8.0, "stage_started", started(run, "fetched", 10, 10)))
    (stage,) = stage_progress(run, now=last + 4.0)
    assert (stage.num_complete, stage.num_parts) == (6, 10)
    assert stage.parts_per_second == pytest.approx(0.5, rel=0.01)
    assert stage.seconds_left == pytest.approx(8.0, rel=0.01)
    assert stage.idle_seconds == pytest.approx(4.0)


def test_a_resumed_stage_counts_the_rate_of_its_new_parts_and_all_of_its_time(run: Run) -> None:
    write_parts(run, "fetched", 10, range(6))
    last = max(run.stage("fetched", 10).completion_times())
    events_at(
        run,
        (last - 100.0, "stage_started", started(run, "fetched", 10, 10)),
        (last - 8.0, "stage_started", started(run, "fetched", 10, 6)),
    )
    (stage,) = stage_progress(run, now=last)
    assert stage.parts_per_second == pytest.approx(2 / 8, rel=0.01)
    assert stage.seconds_left == pytest.approx(16.0, rel=0.01)


def test_a_later_generation_is_counted_by_itself(run: Run) -> None:
    write_parts(run, "fetched", 4, range(4))
    write_parts(run, "fetched", 4, range(1), generation=1)
    events_at(
        run,
        (10.0, "stage_started", started(run, "fetched", 4, 4)),
        (12.0, "stage", ended("fetched", 4, 2.0)),
        (13.0, "stage_started", started(run, "fetched", 4, 4, generation=1)),
    )
    (stage,) = stage_progress(run)
    assert (stage.running, stage.num_complete, stage.num_parts) == (True, 1, 4)
