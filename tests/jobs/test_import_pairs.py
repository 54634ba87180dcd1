import argparse
import json
import tarfile
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cluster import storage
from jobs import import_pairs, snapshot
from jobs.import_pairs import ImportPairsJob
from jobs.snapshot import SnapshotJob
from pipeline.data.flows.import_export_flow import read_pairs
from pipeline.data.snapshots.shard import ShardConfig
from pipeline.data.snapshots.snapshot import Snapshot
from pipeline.data.snapshots.takedown import take_down
from pipeline.reasons import Reason
from pipeline.schemas import PAIRS
from tests.pipeline.data.rows import encode, opened, photo_like
from tests.pipeline.data.sources.test_img2dataset import tar

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_local")]

NUM_IMAGES, NUM_TARS = 30, 3
IMAGES = [encode(photo_like(seed, 90, 60), "JPEG") for seed in range(NUM_IMAGES)]
CAPTIONS = [f"picture  number {number}, as it is\n" for number in range(NUM_IMAGES)]
SHARDS = ShardConfig(target_bytes=115_000, row_group_size=4)


def img2dataset_row(number: int, status: str = "success") -> dict[str, Any]:
    """The metadata that img2dataset writes for an image."""
    return {
        "url": f"http://a.example/{number}.jpg",
        "caption": CAPTIONS[number % NUM_IMAGES],
        "key": f"{number:09d}",
        "status": status,
        "error_message": None if status == "success" else "timed out",
        "width": 90,
        "height": 60,
        "original_width": 900,
        "original_height": 600,
        "exif": "{}",
        "sha256": f"{number:064x}" if status == "success" else None,
    }


@pytest.fixture(scope="module")
def img2dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """img2dataset's webdataset and Parquet output, each with a failed download, a truncated image and a duplicate."""
    folder = tmp_path_factory.mktemp("img2dataset")
    (folder / "tars").mkdir()
    (folder / "tables").mkdir()
    for index in range(NUM_TARS):
        numbers = [*range(index, NUM_IMAGES, NUM_TARS), 0]
        images = [IMAGES[number] for number in numbers]
        rows = [img2dataset_row(number) for number in numbers]
        rows += [img2dataset_row(100 + index), img2dataset_row(200 + index, "failed_to_download")]
        images.append(IMAGES[0][:300])
        members: list[tuple[str, bytes]] = []
        for position, (row, image) in enumerate(zip(rows, images, strict=False)):
            row["key"] = f"{index}{position:04d}"
            members += [(f"{row['key']}.jpg", image), (f"{row['key']}.json", json.dumps(row).encode())]
            members += [(f"{row['key']}.txt", row["caption"].encode())]
        (folder / "tars" / f"{index:05d}.tar").write_bytes(tar(members))
        table = pa.Table.from_pylist(rows)
        pq.write_table(table, folder / "tars" / f"{index:05d}.parquet")
        with_images = table.append_column("jpg", pa.array([*images, None], pa.binary()))
        pq.write_table(with_images, folder / "tables" / f"{index:05d}.parquet")
    return folder


def run_import(input: Path | str, output: Path) -> Snapshot:  # noqa: A002 (the job's option)
    import_pairs.main(ImportPairsJob(input=str(input), output=str(output), shard=SHARDS))
    return Snapshot.open(str(output / "dataset"))


def rows_of(found: Snapshot) -> pa.Table:
    return pa.concat_tables([pq.read_table(shard.path, schema=PAIRS) for shard in found.shards])


@pytest.fixture(scope="module")
def imported(img2dataset: Path, tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> Snapshot:  # noqa: ARG001
    return run_import(img2dataset / "tars", tmp_path_factory.mktemp("import"))


def test_images_and_captions_of_img2dataset_are_imported_unchanged(imported: Snapshot) -> None:
    table = rows_of(imported)
    found = {row["url"]: row for row in table.to_pylist()}
    assert len(found) == table.num_rows == NUM_IMAGES
    for number, (image, caption) in enumerate(zip(IMAGES, CAPTIONS, strict=True)):
        row = found[f"http://a.example/{number}.jpg"]
        assert (row["image"], row["caption"], row["sha256"]) == (image, caption, f"{number:064x}")
    assert len(imported.shards) == 2
    assert imported.verify() == []
    funnel = json.loads((Path(imported.uri).parent / "funnel.json").read_text())
    dropped = {stage["stage"]: stage["dropped"] for stage in funnel}
    assert dropped["imported"] == {Reason.CORRUPT_IMAGE: NUM_TARS, Reason.IMAGE_MISSING: NUM_TARS}
    assert dropped["distinct"] == {Reason.DUPLICATE_PAIR: NUM_TARS}


def test_img2datasets_parquet_output_gives_the_same_pairs(
    imported: Snapshot, img2dataset: Path, tmp_path: Path
) -> None:
    found = run_import(img2dataset / "tables", tmp_path / "run")
    assert rows_of(found).sort_by("pair_id") == rows_of(imported).sort_by("pair_id")


@pytest.fixture(scope="module")
def exported(imported: Snapshot, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tars")
    snapshot.main(SnapshotJob(verb="export", uri=imported.uri, output=str(folder)))
    return folder


def digests(found: Snapshot) -> list[str]:
    return [shard.sha256 for shard in found.shards]


def test_importing_an_export_gives_the_same_shards(imported: Snapshot, exported: Path, tmp_path: Path) -> None:
    assert digests(run_import(exported, tmp_path / "run")) == digests(imported)


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # of open_clip
@pytest.mark.parametrize("is_train", [True, False])
def test_open_clip_reads_every_sample(
    imported: Snapshot, exported: Path, is_train: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pytest.importorskip("open_clip_train.data")
    # img2dataset's version of webdataset marks the ends of tars; open_clip's grouping code cannot handle these marks
    monkeypatch.setattr(data, "tar_file_expander", partial(data.tar_file_expander, eof_value=None))
    tars = f"{exported}/{{00000..{len(imported.shards) - 1:05d}}}.tar"
    args = argparse.Namespace(
        train_data=tars, val_data=tars, train_num_samples=None, val_num_samples=NUM_IMAGES, seed=0, workers=0,
        train_data_upsampling_factors=None, dataset_resampled=False, batch_size=NUM_IMAGES, world_size=1,
    )  # fmt: skip
    info = data.get_wds_dataset(
        args,
        lambda image: torch.tensor(zlib.crc32(image.tobytes())),
        is_train,
        tokenizer=lambda caption: [torch.tensor(CAPTIONS.index(caption))],
    )
    assert info.dataloader.num_samples == NUM_IMAGES, "in training, open_clip reads the number from sizes.json"
    images, captions = next(iter(info.dataloader))
    expected = {zlib.crc32(opened(image).convert("RGB").tobytes()): number for number, image in enumerate(IMAGES)}
    assert [expected[int(image)] for image in images] == captions.tolist()
    assert sorted(captions.tolist()) == list(range(NUM_IMAGES))


def test_a_rerun_of_an_export_writes_only_missing_files_with_the_same_bytes(imported: Snapshot, exported: Path) -> None:
    before = {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in exported.glob("*.tar")}
    (exported / "00001.tar").unlink()
    (exported / ".export" / "tars" / "_part-00001.json").unlink()
    (exported / "sizes.json").unlink()
    snapshot.main(SnapshotJob(verb="export", uri=imported.uri, output=str(exported)))
    after = {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in exported.glob("*.tar")}
    assert {name: data for name, (data, _) in after.items()} == {name: data for name, (data, _) in before.items()}
    assert [name for name in after if after[name][1] != before[name][1]] == ["00001.tar"]
    assert sum(json.loads((exported / "sizes.json").read_text()).values()) == NUM_IMAGES


def test_export_and_import_work_on_s3(imported: Snapshot, exported: Path, s3: str, tmp_path: Path) -> None:
    for file in storage.list_files(imported.uri):
        storage.write_bytes(storage.join(s3, "pairs", file[len(imported.uri) :]), storage.read_bytes(file))
    snapshot.main(SnapshotJob(verb="export", uri=f"{s3}/pairs", output=f"{s3}/tars"))
    for tar_file in exported.glob("*.tar"):
        assert storage.read_bytes(f"{s3}/tars/{tar_file.name}") == tar_file.read_bytes()
    assert digests(run_import(f"{s3}/tars", tmp_path / "run")) == digests(imported)


def test_an_export_of_a_different_snapshot_is_refused(
    imported: Snapshot, exported: Path, img2dataset: Path, tmp_path: Path
) -> None:
    other = run_import(img2dataset / "tars" / "00000.tar", tmp_path / "run")
    with pytest.raises(ValueError, match="holds a run of another configuration; it differs in snapshot_id"):
        snapshot.main(SnapshotJob(verb="export", uri=other.uri, output=str(exported)))
    with pytest.raises(ValueError, match="--output: give a folder for the tars"):
        snapshot.main(SnapshotJob(verb="export", uri=imported.uri))


def test_taken_down_pairs_are_not_exported(exported: Path, tmp_path: Path) -> None:
    found = run_import(exported, tmp_path / "run")
    taken_down = rows_of(found).slice(5, 2)["pair_id"].to_pylist()
    take_down(found.uri, {"pair_id": taken_down}, "asked to")
    snapshot.main(SnapshotJob(verb="export", uri=found.uri, output=str(tmp_path / "tars")))
    assert sum(json.loads((tmp_path / "tars" / "sizes.json").read_text()).values()) == NUM_IMAGES - 2
    before, after = (members(folder) for folder in (exported, tmp_path / "tars"))
    assert {before[name] for name in before.keys() - after.keys()} == set(taken_down)
    assert after.items() <= before.items(), "the other pairs keep their keys"


def members(folder: Path) -> dict[str, str]:
    """The pair id of each key."""
    found = {}
    for file in folder.glob("*.tar"):
        with tarfile.open(file) as shard:
            for name in shard.getnames():
                if name.endswith(".json"):
                    found[name] = json.loads(shard.extractfile(name).read())["pair_id"]  # type: ignore[union-attr]
    return found


def test_invalid_inputs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("url,caption\n")
    with pytest.raises(FileNotFoundError, match=r"no \*\.tar or \*\.parquet under"):
        import_pairs.main(ImportPairsJob(input=str(tmp_path), output=str(tmp_path / "run")))
    with pytest.raises(ValueError, match=r"input=.*x.csv: expected one of \*\.tar, \*\.parquet"):
        import_pairs.main(ImportPairsJob(input=str(tmp_path / "x.csv"), output=str(tmp_path / "run")))
    pq.write_table(pa.table({"url": ["http://a.example/"], "caption": ["x"]}), tmp_path / "urls.parquet")
    with pytest.raises(ValueError, match=r"urls.parquet: no column of images"):
        import_pairs.main(ImportPairsJob(input=str(tmp_path / "urls.parquet"), output=str(tmp_path / "run")))
    (tmp_path / "urls.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"input=.*urls.parquet: cannot be read as Parquet"):
        import_pairs.main(ImportPairsJob(input=str(tmp_path / "urls.parquet"), output=str(tmp_path / "run")))


def test_the_rows_of_a_damaged_row_group_have_a_reason(tmp_path: Path) -> None:
    table = pa.table({"image": IMAGES, "caption": CAPTIONS})
    pq.write_table(table, tmp_path / "pairs.parquet", compression="none", write_page_checksum=True)
    data = bytearray((tmp_path / "pairs.parquet").read_bytes())
    data[len(data) // 3] ^= 1
    (tmp_path / "pairs.parquet").write_bytes(data)
    (row,) = read_pairs(str(tmp_path / "pairs.parquet")).to_pylist()
    assert row["reason"] == Reason.BROKEN_ARCHIVE
    assert row["caption"].startswith(f"{len(IMAGES)} rows: OSError: ")
