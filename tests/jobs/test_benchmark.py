import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray.job_submission import JobStatus, JobSubmissionClient

from jobs.benchmark import BenchmarkJob, main, write_overlap
from jobs.options.launch import launch
from pipeline.eval.flows import benchmark_flow
from pipeline.eval.protocols.statistics import Score, proportion_interval
from pipeline.eval.protocols.suite import Evaluation
from pipeline.schemas import OVERLAPS, conform
from tests.pipeline.eval.models import save_small_model
from tests.pipeline.eval.pictures import make_sets
from tests.pipeline.eval.predictions import classified
from tests.ray_head import ROOT, ray_head


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_small_model(folder)
    return folder


@pytest.fixture
def job(tmp_path: Path, small_model: Path) -> BenchmarkJob:
    make_sets(tmp_path / "sets")
    return BenchmarkJob(
        model=str(small_model), datasets=str(tmp_path / "sets"), output=str(tmp_path / "out"), digits=False
    )


@pytest.mark.usefixtures("ray_local")
def test_a_benchmark_writes_results_and_a_rerun_leaves_them_unchanged(job: BenchmarkJob, tmp_path: Path) -> None:
    main(replace(job, digits=True))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    scores = {name: Score(**fields) for name, fields in results["scores"].items()}
    assert list(scores) == [
        "colours",
        *(f"pairs/{direction}_r@{k}" for direction in ("image_to_text", "text_to_image") for k in (1, 5, 10)),
        "sklearn_digits",
    ]
    assert (scores["colours"].chance, scores["colours"].num_samples) == (0.2, 15)
    digits = scores["sklearn_digits"]
    assert (digits.chance, digits.num_samples) == (0.1, 1_797)
    assert (digits.low, digits.high) == pytest.approx(proportion_interval(round(digits.value * 1_797), 1_797))
    assert results["sets"]["sklearn_digits"]["num_samples"] == 1_797
    assert sum(entry["num_samples"] for entry in results["per_class"]["sklearn_digits"].values()) == 1_797

    predictions = pq.read_table(tmp_path / "out" / "predictions" / "sklearn_digits.parquet").to_pylist()
    assert sum(row["truth"] == row["predicted"] for row in predictions) / 1_797 == pytest.approx(digits.value)
    assert [row["sample"] for row in predictions] == list(range(1_797))
    assert pq.read_table(tmp_path / "out" / "predictions" / "pairs.parquet").num_rows == 15 + 30

    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*") if "sets" not in file.parts}
    main(replace(job, digits=True))
    assert {file: file.stat().st_mtime_ns for file in files} == files


def test_overlap_json_has_scores_on_overlapping_and_clean_images(job: BenchmarkJob, tmp_path: Path) -> None:
    sources = benchmark_flow.open_sets(job.datasets)
    predictions = {"colours": classified([True] * 10 + [False] * 5), "pairs": classified([True] * 15)}
    evaluations = {name: Evaluation(scores={}, per_class={}, predictions=made) for name, made in predictions.items()}
    benchmark_flow.write_predictions(str(tmp_path / "out" / "predictions"), evaluations)
    sets = {source.dataset.name: source.sha256 for source in sources}
    rows = [("x", "colours", 3), ("y", "colours", 3), ("y", "colours", 14), ("y", "elsewhere", 0)]
    columns = {"pair_id": [row[0] for row in rows], "benchmark": [row[1] for row in rows]}
    columns["set_sha256"] = [sets.get(row[1], "none") for row in rows]
    overlaps = conform(pa.table(columns | {"item": [row[2] for row in rows]}), OVERLAPS)
    pq.write_table(overlaps, tmp_path / "overlaps.parquet")
    write_overlap(job.output, str(tmp_path / "overlaps.parquet"), sources)
    record = json.loads((tmp_path / "out" / "overlap.json").read_text())
    assert (record["summary"]["num_sets"], record["summary"]["num_without"]) == (2, 1)
    colours, pairs = record["sets"]
    assert (colours["overlapping"]["num_samples"], colours["clean"]["num_samples"]) == (2, 13)
    assert colours["clean"]["value"] == pytest.approx(9 / 13)
    assert pairs["overlapping"] is None

    other = overlaps.set_column(1, "benchmark", pa.array(["pairs"] * 4))
    pq.write_table(other, tmp_path / "overlaps.parquet")
    with pytest.raises(ValueError, match="another version of the set pairs"):
        write_overlap(job.output, str(tmp_path / "overlaps.parquet"), sources)
    without = overlaps.set_column(4, "item", pa.array([3, 3, None, 0], pa.int64()))
    pq.write_table(without, tmp_path / "overlaps.parquet")
    with pytest.raises(ValueError, match=r"overlaps\.parquet: not a table of overlaps, the column 'item' has nulls"):
        write_overlap(job.output, str(tmp_path / "overlaps.parquet"), sources)


def test_an_output_of_a_different_model_is_refused(job: BenchmarkJob, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text('{"model": "ab", "sets": {}}')
    with pytest.raises(ValueError, match=r"out holds a run of another configuration; it differs in model: .*sets"):
        main(job)


def test_two_sets_with_the_same_name_are_refused(job: BenchmarkJob, tmp_path: Path) -> None:
    make_sets(tmp_path / "sets" / "again")
    with pytest.raises(ValueError, match=r"two sets have the same name \(colours, colours, pairs, pairs\)"):
        main(job)


@pytest.mark.parametrize("option", ["model", "datasets"])
def test_a_missing_model_or_data_set_ends_with_one_line(
    option: str, job: BenchmarkJob, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"model": job.model, "datasets": job.datasets, "output": job.output} | {option: "/nowhere"}
    with pytest.raises(SystemExit, match="2"):
        launch(BenchmarkJob, main, [f"--{name}={value}" for name, value in options.items()])
    assert f"error: {option}=/nowhere: does not exist" in capsys.readouterr().err


@pytest.mark.faults
@pytest.mark.cluster
def test_the_job_runs_through_ray_job_submit_and_logs_its_scores(job: BenchmarkJob) -> None:
    options = [f"--{name}={getattr(job, name)}" for name in ("model", "datasets", "output")]
    with ray_head() as head:
        command = ["job", "submit", "--address", head.dashboard, "--submission-id", "benchmark-1", "--working-dir", "."]
        submitted = subprocess.run(
            [sys.executable, "-m", "ray.scripts.scripts", *command, "--", "python", "-m", "jobs.benchmark", *options,
             "--digits=false"],
            cwd=ROOT, env=head.environment, capture_output=True, text=True, timeout=280,
        )  # fmt: skip
        assert submitted.returncode == 0, submitted.stdout + submitted.stderr
        client = JobSubmissionClient(head.dashboard)
        assert client.get_job_status("benchmark-1") == JobStatus.SUCCEEDED
        logs = client.get_job_logs("benchmark-1")
    assert "encode: 70/70 samples" in logs
    scores = json.loads(Path(job.output, "results.json").read_text())["scores"]
    for name, score in scores.items():
        assert f"{name}: {100 * score['value']:.1f}% [" in logs
