"""What jobs.status prints; it lies here because it is about the runs of all jobs."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cluster.runs import Run
from cluster.stages import Stages
from jobs.status import StatusJob, arguments, main
from tests.pipeline.train.telemetry.test_progress import CONFIGURATION, write_run


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_local")
def test_the_stages_of_a_run_in_the_order_of_the_flow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run.open(str(tmp_path / "run"), {"seed": 1})
    stages = Stages(run)
    for name in ("unique", "balanced", "archives"):
        stages(name, 2, lambda part: pa.table({"value": np.arange(3), "reason": ["bad" if part else None] * 3}))
    stages.events.append(
        "stage_started", stage="fetched", uri=run.stage("fetched", 4).uri, parts=4, generation=0, pending=4
    )
    main(StatusJob(run=run.uri))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{run.uri}  (run {run.run_id})"
    assert [line.split()[0] for line in lines[1:4]] == ["unique", "balanced", "archives"]
    assert all(" 2 parts " in line and " 3 kept " in line and " 3 dropped " in line for line in lines[1:4])
    assert lines[4].startswith("> fetched ")
    assert " 0/4 parts, started " in lines[4]


def test_a_training_run_and_the_runs_below_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outer = Run.open(str(tmp_path / "demo"), {"seed": 1})
    inner = Run.open(str(tmp_path / "demo" / "pretrain"), CONFIGURATION)
    write_run(tmp_path / "demo" / "pretrain", [2, 4], checkpoints=(2, 4))
    (tmp_path / "demo" / "pretrain" / "validation.jsonl").write_text(
        json.dumps({"step": 4, "images_seen": 32, "scores": {"shape": 0.25}}) + "\n"
    )
    main(StatusJob(run=outer.uri))
    assert capsys.readouterr().out.splitlines() == [
        f"{outer.uri}  (run {outer.run_id})",
        "  nothing is recorded yet",
        f"{inner.uri}  (run {inner.run_id})",
        "> step 4/12 (33%), loss 0.250, 16 pairs/s, 4.0 s left, trained for 2.0 s",
        "  validation: shape 25.0%",
        "  checkpoints: after step 2, 4",
    ]


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"run=.*: no run is there \(run\.json is missing\)"):
        main(StatusJob(run=str(tmp_path)))


def test_the_run_may_be_a_leading_word() -> None:
    assert arguments(["runs/crawl"]) == ["--run=runs/crawl"]
    assert arguments(["--run", "runs/crawl"]) == ["--run", "runs/crawl"]
