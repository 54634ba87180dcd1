"""Whole runs on Ray Train: the curve does not depend on how the work is carried out."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import pipeline
from cluster import storage
from pipeline.data.reading import shard_infos
from pipeline.model.config import ImageTowerConfig, ModelConfig, TextTowerConfig
from pipeline.schemas import PAIRS
from pipeline.train.config import TrainConfig
from pipeline.train.metrics import Metrics, read_metrics
from pipeline.train.run import Pretraining
from pipeline.train.trainer import pretrain
from tests.pipeline.train.pairs import write_snapshot

MODEL = ModelConfig(
    embed_dim=16,
    image=ImageTowerConfig(
        architecture="convnext_atto",
        image_size=32,
        options={"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16], "kernel_sizes": 3, "ls_init_value": None},
    ),
    text=TextTowerConfig(width=16, heads=2, layers=1, context_length=14, vocab_size=560),
)
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
def test_a_run_leaves_a_model_metrics_and_a_result(finished: Pretraining) -> None:
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


@pytest.mark.cluster
def test_the_curve_does_not_depend_on_workers_or_chunks(finished: Pretraining, tmp_path: Path) -> None:
    """Nor on where weights are, or what is computed again."""
    config = replace(
        CONFIG, num_workers=1, chunk_size=100, rows_per_read=100, shard_weights=False, checkpoint_activations=False
    )
    alone = replace(finished, output=str(tmp_path), train=config)
    pretrain(alone)
    for one, two in zip(curve(alone), curve(finished), strict=True):
        assert one.loss == pytest.approx(two.loss, rel=1e-4), one.step
        assert one.gradient_norm == pytest.approx(two.gradient_norm, rel=1e-3), one.step
        assert one.logit_scale == pytest.approx(two.logit_scale, rel=1e-5), one.step
        assert one.accuracy_image_to_text == two.accuracy_image_to_text, one.step


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
        ({"train": replace(CONFIG, seed=3)}, r"train\.seed: 0 there, 3 asked for"),
        ({"snapshot_id": "ff"}, 'snapshot_id: .* there, "ff" asked for'),
        ({"model": replace(MODEL, embed_dim=8)}, r"model\.embed_dim: 16 there, 8 asked for"),
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


@pytest.mark.cluster
def test_a_run_goes_on_without_what_was_taken_down_meanwhile(
    finished: Pretraining, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Killed after its second checkpoint, as it were; by then there are pairs fewer, and so steps fewer."""
    shutil.copytree(finished.output, tmp_path / "run")
    for name in ("result.json", "checkpoints/step-00000012/manifest.json"):
        (tmp_path / "run" / name).unlink()
    gone = tuple((0, row) for row in range(8))
    shards = (replace(finished.shards[0], taken_down=gone), finished.shards[1])
    resumed = replace(finished, output=str(tmp_path / "run"), shards=shards)
    pretrain(resumed)
    assert "8 pairs of the snapshot are taken down, 0 when this run was last started" in caplog.text
    rows = curve(resumed)
    assert rows[:8] == curve(finished)[:8]
    assert [row.step for row in rows[8:]] == [9], "56 // 15 steps in each of 3 epochs"


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_local")
def test_a_damaged_shard_stops_the_run_by_name(run: Pretraining, tmp_path: Path) -> None:
    """Found by a reading task of a worker: the captions, which the vocabulary is learned from, are sound."""
    source, damaged = Path(run.shards[1].path), tmp_path / "damaged.parquet"
    data = bytearray(source.read_bytes())
    column = pq.read_metadata(source).row_group(0).column(PAIRS.names.index("image"))
    assert column.path_in_schema == "image"
    data[column.file_offset + column.total_compressed_size // 2] ^= 1
    damaged.write_bytes(data)
    shards = (run.shards[0], replace(run.shards[1], path=str(damaged)))
    with pytest.raises(ValueError, match=r"damaged\.parquet: this shard of the snapshot is damaged"):
        pretrain(replace(run, output=str(tmp_path / "run"), shards=shards))
