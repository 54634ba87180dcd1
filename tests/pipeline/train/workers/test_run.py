"""Checks of a run before it begins."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.data.snapshots.reading import shard_infos
from pipeline.model.config import ImageTowerConfig
from pipeline.model.objectives.networks import network_for
from pipeline.train.checkpoints.checkpoint import Checkpoint, Progress
from pipeline.train.workers.run import Pretraining
from tests.pipeline.train.pairs import MODEL, write_snapshot
from tests.pipeline.train.workers.test_trainer import CONFIG


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Pretraining:
    """A run with a checkpoint after one step."""
    folder = tmp_path_factory.mktemp("run")
    snapshot = write_snapshot(folder / "set", 64)
    shards = shard_infos(snapshot.shards)
    run = Pretraining(
        output=str(folder / "run"), shards=shards, snapshot_id=snapshot.snapshot_id, model=MODEL, train=CONFIG
    )
    model = run.new_model(run.tokenizer().to_json())
    run.checkpoints().save(Checkpoint(model, {}, Progress(1, 1.0)))
    return run


def test_a_checkpoint_of_the_same_model_is_accepted(run: Pretraining) -> None:
    run.check_checkpoint_model(run.tokenizer())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (replace(MODEL, embed_dim=8), r"embed_dim: 16 recorded, 8 requested"),
        (replace(MODEL, text=replace(MODEL.text, width=32)), r"text\.width: 16 recorded, 32 requested"),
        (replace(MODEL, objective="bag"), r'objective: .* "bag" requested'),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(run: Pretraining, model: object, message: str) -> None:
    other = replace(run, model=model)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=rf"step-00000001 is a checkpoint of another model; it differs in .*{message}"):
        other.check_checkpoint_model(run.tokenizer())


def test_a_checkpoint_with_another_tokenizer_is_refused(run: Pretraining, tmp_path: Path) -> None:
    """The tokenizer has the same number of entries, but different ones."""
    output = tmp_path / "run"
    shutil.copytree(run.output, output)
    entries = json.loads((output / "tokenizer.json").read_text())
    first, second = list(entries["model"]["vocab"])[300:302]
    vocabulary = entries["model"]["vocab"]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (output / "tokenizer.json").write_text(json.dumps(entries))
    other = replace(run, output=str(output))
    with pytest.raises(ValueError, match="checkpoint of another model; it differs in the entries of the tokenizer"):
        other.check_checkpoint_model(other.tokenizer())


DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "missing": lambda _: None,
    "half": lambda data: data[: len(data) // 2],
    "another": lambda data: data.replace(b"16", b"17").replace(b"a", b"b"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_damaged_file_is_not_another_model(run: Pretraining, tmp_path: Path, name: str, damage: str) -> None:
    """The checkpoint before it is compared instead. If there is no other one, the damage is reported."""
    output = tmp_path / "run"
    shutil.copytree(run.output, output)
    other = replace(run, output=str(output))
    older, newer = (output / "checkpoints" / folder for folder in ("step-00000001", "step-00000002"))
    shutil.copytree(older, newer)
    damaged = DAMAGES[damage]((newer / name).read_bytes())
    (newer / name).unlink()
    if damaged is not None:
        (newer / name).write_bytes(damaged)
    other.check_checkpoint_model(other.tokenizer())
    shutil.rmtree(older)
    with pytest.raises(ValueError, match=rf"checkpoints: every checkpoint in it is damaged .*step-00000002/{name}"):
        other.check_checkpoint_model(other.tokenizer())


def test_a_missing_shard_is_named(run: Pretraining, tmp_path: Path) -> None:
    path = tmp_path / "part.parquet"
    shutil.copy(run.shards[1].path, path)
    moved = replace(run, shards=(run.shards[0], replace(run.shards[1], path=str(path))))
    moved.check_shards_exist()
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"part\.parquet: this shard of the snapshot is gone"):
        moved.check_shards_exist()


@pytest.mark.parametrize(
    ("train", "model", "message"),
    [
        ({"global_batch_size": 65}, MODEL, "global_batch_size=65 is more than the snapshot's 64 pairs"),
        (
            {"global_batch_size": 8, "norm_group_size": 4, "max_workers": 3},
            replace(MODEL, image=ImageTowerConfig(architecture="resnet18", image_size=32)),
            "global_batch_size=8 cannot be divided among 3 workers in groups of norm_group_size=4",
        ),
    ],
)
def test_impossible_batches_are_refused(run: Pretraining, train: dict[str, int], model: object, message: str) -> None:
    other = replace(run, train=replace(CONFIG, **train), model=model)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        other.check_batches()


def test_new_models_of_a_run_are_identical(run: Pretraining) -> None:
    first, second = (run.new_model(run.tokenizer().to_json()) for _ in range(2))
    assert type(first.network) is type(network_for(first.network.config))
    for name, tensor in first.network.state_dict().items():
        assert tensor.equal(second.network.state_dict()[name]), name
