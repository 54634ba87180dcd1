"""Whole runs on Ray Train: the loss curve does not depend on how the work is divided."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
import torch
from ray.train.v2.api.config import ScalingConfig

import pipeline
from cluster import storage
from cluster.ray_private.train import NoopDecision
from cluster.resources import Pool
from pipeline.data.snapshots.reading import shard_infos
from pipeline.model.config import ImageTowerConfig
from pipeline.model.weights.model_folder import Model
from pipeline.schemas import PAIRS
from pipeline.train.config import TrainConfig
from pipeline.train.telemetry.metrics import Metrics, read_metrics, read_validation
from pipeline.train.workers import run_lock, trainer, worker_group
from pipeline.train.workers.loop import train
from pipeline.train.workers.run import Pretraining
from pipeline.train.workers.run_lock import only_job
from pipeline.train.workers.trainer import pretrain
from pipeline.train.workers.validation import Validation
from pipeline.train.workers.worker_group import _ReservingPolicy
from tests.pipeline.train.pairs import MODEL, write_snapshot

CONFIG = TrainConfig(
    global_batch_size=15,  # cannot be halved
    epochs=3,
    learning_rate=3e-3,
    warmup_steps=2,
    precision="fp32",
    shuffle_row_groups=3,
    num_workers=2,
    shard_weights=True,
    checkpoint_activations=True,
    chunk_size=4,
    rows_per_read=20,
    log_every_steps=1,
    checkpoint_every_steps=4,
    max_failures=0,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Pretraining:
    folder = tmp_path_factory.mktemp("pairs")
    snapshot = write_snapshot(folder / "set", 64)
    shards = shard_infos(snapshot.shards)
    return Pretraining(
        output=str(folder / "run"), shards=shards, snapshot_id=snapshot.snapshot_id, model=MODEL, train=CONFIG
    )


@pytest.fixture(scope="module")
def finished(run: Pretraining, ray_local: None) -> Pretraining:  # noqa: ARG001
    pretrain(run)
    return run


def curve(run: Pretraining) -> list[Metrics]:
    return read_metrics(run.output, storage)


@pytest.mark.cluster
def test_a_run_writes_a_model_metrics_and_a_result(finished: Pretraining) -> None:
    output = Path(finished.output)
    rows = curve(finished)
    assert [row.step for row in rows] == list(range(1, 13))  # 64 // 15 steps in each of 3 epochs
    assert rows[-1].loss < rows[0].loss
    assert rows[-1].learning_rate < rows[2].learning_rate == CONFIG.learning_rate
    result = json.loads((output / "result.json").read_text())
    assert result["num_steps"] == 12
    assert result["images_seen"] == 180
    assert result["final_loss"] == rows[-1].loss
    assert result["snapshot_id"] == finished.snapshot_id
    assert result["samples_per_second"] > 0
    network, _, tokenize = pipeline.load(result["model"])
    assert network.encode_text(tokenize(["a red card"])).shape == (1, 16)
    assert (output / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert any((output / "tensorboard").iterdir())
    assert sorted(path.name for path in (output / "checkpoints").iterdir()) == ["step-00000008", "step-00000012"]


@pytest.mark.faults
@pytest.mark.cluster
def test_the_curve_does_not_depend_on_workers_or_chunks(finished: Pretraining, tmp_path: Path) -> None:
    """Nor on sharded weights, recomputed activations and checkpoints, here one after each step by the clock."""
    train = replace(
        CONFIG, num_workers=1, chunk_size=100, rows_per_read=100, checkpoint_every_steps=100,
        checkpoint_every_minutes=1e-6, keep_checkpoint_every_steps=5, shard_weights=False,
        checkpoint_activations=False,
    )  # fmt: skip
    single = replace(finished, output=str(tmp_path), train=train)
    pretrain(single)
    kept = sorted(int(path.name.removeprefix("step-")) for path in (tmp_path / "checkpoints").iterdir())
    assert kept == [5, 10, 11, 12]
    for row, expected in zip(curve(single), curve(finished), strict=True):
        assert row.loss == pytest.approx(expected.loss, rel=1e-4), row.step
        assert row.gradient_norm == pytest.approx(expected.gradient_norm, rel=1e-3), row.step
        assert row.logit_scale == pytest.approx(expected.logit_scale, rel=1e-5), row.step
        assert row.accuracy_image_to_text == expected.accuracy_image_to_text, row.step


@pytest.mark.faults
@pytest.mark.cluster
@pytest.mark.usefixtures("ray_local")
def test_on_one_worker_a_resumed_run_is_bitwise_identical(
    run: Pretraining, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """This includes batch norms and dropout. The whole run is validated meanwhile; in the resumed run every validation
    fails."""

    def score(model: Model) -> dict[str, float]:
        return {"weights": float(sum(p.abs().sum() for p in model.network.parameters()))}

    def fail(model: Model) -> dict[str, float]:
        raise OverflowError(f"no score for {model.network.config.objective}")

    image = ImageTowerConfig(
        architecture="resnet18",
        image_size=32,
        options={"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16], "drop_rate": 0.3},
    )
    train = replace(
        CONFIG, global_batch_size=16, epochs=2, num_workers=1, norm_group_size=8, checkpoint_every_steps=3,
        keep_checkpoints=3,
    )  # fmt: skip
    whole = replace(run, output=str(tmp_path / "whole"), model=replace(MODEL, image=image), train=train)
    pretrain(whole, Validation(score=score, pool=Pool(cpus=0)))
    resumed = replace(whole, output=str(tmp_path / "resumed"))
    shutil.copytree(whole.output, resumed.output)
    for name in ("checkpoints/step-00000006", "checkpoints/step-00000008", "model"):
        shutil.rmtree(Path(resumed.output) / name)
    (Path(resumed.output) / "result.json").unlink()
    pretrain(resumed, Validation(score=fail, pool=Pool(cpus=0)))

    states = []
    for each in (whole, resumed):
        checkpoint = each.checkpoints().latest()
        assert checkpoint is not None
        assert checkpoint.progress.num_steps == 8
        assert [row.step for row in curve(each)] == list(range(1, 9))
        moments = {
            f"{name} of {index}": value
            for index, state in checkpoint.optimizer["state"].items()
            for name, value in state.items()
        }
        states.append(checkpoint.model.network.state_dict() | moments)
    assert states[0].keys() == states[1].keys()
    assert any("running_var" in name for name in states[0])
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
    assert [row.loss for row in curve(whole)] == [row.loss for row in curve(resumed)]

    scores = read_validation(whole.output, storage)
    assert scores[-1].step == 8, "the run waits for the last validation"
    assert {row.step for row in scores} <= {3, 6, 8}
    assert scores[-1].scores["weights"] > 0
    assert {row.step for row in read_validation(resumed.output, storage)} <= {3}
    assert "validation after step 8 failed, the run continues without it: " in caplog.text


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_local")
def test_elastic_workers_leave_cpus_free_for_reading() -> None:
    """4 CPUs hold 2 workers with one reading CPU each, or 1 worker beside a validation on 2 CPUs. A group of
    `min_workers` workers may share one reading CPU."""
    node = ray.get_runtime_context().get_node_id()

    def count(min_workers: int, reserved: Pool, cpus: float = 4.0) -> int:
        scaling = ScalingConfig(num_workers=(min_workers, 8), resources_per_worker={"CPU": 1})
        policy = _ReservingPolicy(scaling, replace(CONFIG, min_workers=min_workers, max_workers=8), None, reserved)
        return policy._count_possible_workers({node: {"CPU": cpus}})

    assert count(1, Pool(cpus=0)) == 2
    assert count(1, Pool(cpus=0), cpus=1.0) == 1, "another job uses the other CPUs"
    assert count(1, Pool(cpus=2)) == 1
    assert count(1, Pool(cpus=3.5)) == 1, "validation has to wait until the end"
    assert count(3, Pool(cpus=0)) == 3
    assert count(4, Pool(cpus=0)) == 3, "4 workers would leave no CPU for reading"


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_local")
def test_too_few_nodes_for_min_workers_are_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scaling = ScalingConfig(num_workers=(4, 8), resources_per_worker={"CPU": 1})
    policy = _ReservingPolicy(scaling, replace(CONFIG, min_workers=4, max_workers=8), None, Pool(cpus=0))
    node = ray.get_runtime_context().get_node_id()
    monkeypatch.setattr(policy, "_maybe_send_resource_request", lambda: None)
    monkeypatch.setattr(policy, "_get_reserved_resources", lambda: {node: {"CPU": 4.0}})
    assert policy.make_decision_for_non_running_worker_group() == NoopDecision()
    assert not caplog.messages
    monkeypatch.setattr(worker_group, "WARN_SECONDS", 0)
    assert policy.make_decision_for_non_running_worker_group() == NoopDecision()
    assert "waiting for nodes: the cluster cannot hold min_workers=4 workers with 1 CPUs" in caplog.text


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_local")
def test_a_second_job_on_the_same_output_is_refused(
    run: Pretraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_lock, "NAME_RELEASE_SECONDS", 0.1)
    other = replace(run, output=str(tmp_path))
    with only_job(other.output), pytest.raises(ValueError, match=f"output={tmp_path}: another job trains in it now"):
        pretrain(other)
    assert not (tmp_path / "checkpoints").exists()


def test_a_worker_that_cannot_read_the_output_is_refused(run: Pretraining, tmp_path: Path) -> None:
    unseen = replace(run, output=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"output={tmp_path}: not visible from node .*; use s3:// or a folder"):
        train(unseen, "", None, None)


@pytest.mark.cluster
def test_a_rerun_of_a_finished_run_does_nothing(finished: Pretraining, caplog: pytest.LogCaptureFixture) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path(finished.output).rglob("*")}
    with caplog.at_level(logging.INFO, "clip"):
        pretrain(replace(finished, train=replace(CONFIG, num_workers=1)))
    assert "finished, nothing to do" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in Path(finished.output).rglob("*")} == before


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train": replace(CONFIG, seed=3)}, r"train\.seed: 0 recorded, 3 requested"),
        ({"snapshot_id": "ff"}, 'snapshot_id: .* recorded, "ff" requested'),
        ({"model": replace(MODEL, embed_dim=8)}, r"model\.embed_dim: 16 recorded, 8 requested"),
    ],
)
def test_an_output_of_another_configuration_is_refused(
    finished: Pretraining, changed: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=f"holds a run of another configuration; it differs in {message}"):
        pretrain(replace(finished, **changed))  # type: ignore[arg-type]


def test_a_batch_larger_than_the_snapshot_is_refused(run: Pretraining, tmp_path: Path) -> None:
    large = replace(run, output=str(tmp_path / "run"), train=replace(CONFIG, global_batch_size=65))
    with pytest.raises(ValueError, match="global_batch_size=65 is more than the snapshot's 64 pairs"):
        pretrain(large)
    assert not (tmp_path / "run").exists()


@pytest.mark.faults
@pytest.mark.cluster
def test_a_resumed_run_leaves_out_pairs_that_were_taken_down(
    finished: Pretraining, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The run looks as if killed after its second checkpoint. With fewer pairs it has fewer steps. The validation
    requires all CPUs, including the worker's."""
    shutil.copytree(finished.output, tmp_path / "run")
    for name in ("result.json", "checkpoints/step-00000012/manifest.json"):
        (tmp_path / "run" / name).unlink()
    taken_down = tuple((0, row) for row in range(8))
    shards = (replace(finished.shards[0], taken_down=taken_down), finished.shards[1])
    elastic = replace(CONFIG, min_workers=1, max_workers=8)
    resumed = replace(finished, output=str(tmp_path / "run"), shards=shards, train=elastic)
    validation = Validation(score=lambda _: {"accuracy": 0.5}, pool=Pool(cpus=4))
    pretrain(resumed, validation)
    trainer._validate_last(resumed, validation)
    assert [(row.step, row.scores) for row in read_validation(resumed.output, storage)] == [(9, {"accuracy": 0.5})]
    assert "8 pairs of the snapshot are taken down, 0 when this run was last started" in caplog.text
    rows = curve(resumed)
    assert rows[:8] == curve(finished)[:8]
    assert [row.step for row in rows[8:]] == [9], "56 // 15 steps in each of 3 epochs"


@pytest.mark.faults
@pytest.mark.cluster
@pytest.mark.usefixtures("ray_local")
def test_a_damaged_shard_stops_the_run_and_is_named(run: Pretraining, tmp_path: Path) -> None:
    """A reading task of a worker finds the damage. The captions, from which the tokenizer is learned, are intact."""
    source, damaged = Path(run.shards[1].path), tmp_path / "damaged.parquet"
    data = bytearray(source.read_bytes())
    column = pq.read_metadata(source).row_group(0).column(PAIRS.names.index("image"))
    assert column.path_in_schema == "image"
    data[column.file_offset + column.total_compressed_size // 2] ^= 1
    damaged.write_bytes(data)
    shards = (run.shards[0], replace(run.shards[1], path=str(damaged)))
    with pytest.raises(ValueError, match=r"damaged\.parquet: this shard of the snapshot is damaged"):
        pretrain(replace(run, output=str(tmp_path / "run"), shards=shards))
