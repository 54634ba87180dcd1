from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

from pipeline.data.snapshots.epoch_order import ShardInfo
from pipeline.data.snapshots.reading import Shards
from pipeline.model.tokenizer.tokenizer import Tokenizer
from pipeline.schemas import PAIRS
from pipeline.train.reading.batches import StepReader
from pipeline.train.reading.plan import Plan
from tests.pipeline.train.pairs import make_pairs

NUM_ROWS, BATCH = 50, 12


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> StepReader:
    table, folder = make_pairs(NUM_ROWS), tmp_path_factory.mktemp("shards")
    paths = [str(folder / f"{index}.parquet") for index in range(2)]
    for index, path in enumerate(paths):
        pq.write_table(table.slice(25 * index, 25), path, row_group_size=10, write_page_checksum=True)
    infos = tuple(ShardInfo(path, (10, 10, 5)) for path in paths)
    captions = table["caption"].to_pylist()
    return StepReader(
        shards=Shards(pyarrow.fs.LocalFileSystem(), tuple(paths), infos),
        plan=Plan(infos, global_batch_size=BATCH, shuffle_row_groups=3, seed=0),
        local_batch_sizes=(BATCH,),
        rank=0,
        seed=0,
        image_size=32,
        crop_share=0.75,
        tokenizer_json=Tokenizer.train(captions, 560, 14).to_json(),
        context_length=14,
    )


def test_arrays_of_a_step(reader: StepReader) -> None:
    arrays = list(reader.read(range(3, 5)))
    assert [set(part["step"]) for part in arrays] == [{3}, {4}]
    for part in arrays:
        assert (part["image"].shape, part["image"].dtype) == ((BATCH, 3, 32, 32), np.uint8)
        assert (part["tokens"].shape, part["tokens"].dtype) == ((BATCH, 14), np.int32)
        assert (part["length"].shape, part["length"].dtype) == ((BATCH,), np.int32)


def test_image_and_caption_come_from_the_rows_of_the_plan(reader: StepReader) -> None:
    table = make_pairs(NUM_ROWS)
    _, numbers = reader.plan.step(2)
    part = next(iter(reader.read([2])))
    tokenizer = Tokenizer.from_json(reader.tokenizer_json, 14)
    expected, lengths = tokenizer.encode_arrays([table["caption"][int(number)].as_py() for number in numbers])
    assert part["tokens"][:, : expected.shape[1]].tolist() == expected.tolist()
    assert part["length"].tolist() == lengths.tolist()
    for image, number in zip(part["image"], numbers, strict=True):
        caption = table["caption"][int(number)].as_py()
        red, green, blue = image.reshape(3, -1).mean(axis=1)
        matches = {
            "red": red > 150 > green,
            "green": green > 150 > red,
            "blue": blue > 150,
            "yellow": red > 150 < green,
        }
        assert matches[caption.split()[1]], caption


@pytest.mark.parametrize("sizes", [(6, 6), (5, 4, 3)])
def test_several_workers_read_the_same_batch_as_one(reader: StepReader, sizes: tuple[int, ...]) -> None:
    """This includes crops: a crop depends on the row, not on the worker that reads the row."""
    whole_batch = next(iter(reader.read([7])))
    shares = [next(iter(replace(reader, local_batch_sizes=sizes, rank=rank).read([7]))) for rank in range(len(sizes))]
    for name, array in whole_batch.items():
        assert np.array_equal(np.concatenate([share[name] for share in shares]), array), name


def test_crops_change_from_epoch_to_epoch(reader: StepReader) -> None:
    crops = {}
    for step in range(3 * reader.plan.steps_per_epoch):
        epoch, numbers = reader.plan.step(step)
        part = next(iter(reader.read([step])))
        crops.update({(epoch, int(number)): image for number, image in zip(numbers, part["image"], strict=True)})
    twice = [number for number in range(NUM_ROWS) if (0, number) in crops and (1, number) in crops]
    assert len(twice) > 30
    same = [np.array_equal(crops[0, number], crops[1, number]) for number in twice]
    assert sum(same) < len(same) / 4  # a crop has about 100 positions


def test_a_shard_with_other_row_groups_is_refused(reader: StepReader) -> None:
    infos = tuple(replace(info, row_groups=(9, 10, 6)) for info in reader.shards.infos)
    wrong = replace(reader, shards=replace(reader.shards, infos=infos), plan=Plan(
        infos, global_batch_size=50, shuffle_row_groups=3, seed=0), local_batch_sizes=(50,))  # fmt: skip
    with pytest.raises(ValueError, match=r"0\.parquet: row group 0 has 10 rows, the snapshot expects 9"):
        next(iter(wrong.read([0])))


def test_a_flipped_bit_is_detected(reader: StepReader, tmp_path: Path) -> None:
    source = Path(reader.shards.paths[0])
    data = bytearray(source.read_bytes())
    column = pq.read_metadata(source).row_group(0).column(PAIRS.names.index("image"))
    assert column.path_in_schema == "image"
    data[column.file_offset + column.total_compressed_size // 2] ^= 1
    damaged = tmp_path / "0.parquet"
    damaged.write_bytes(data)
    wrong = replace(reader, shards=replace(reader.shards, paths=(str(damaged), reader.shards.paths[1])))
    with pytest.raises(ValueError, match=r"0\.parquet: this shard of the snapshot is damaged \(.*CRC"):
        list(wrong.read(range(reader.plan.steps_per_epoch)))


def test_a_missing_shard_is_an_error(reader: StepReader, tmp_path: Path) -> None:
    paths = (str(tmp_path / "gone.parquet"), reader.shards.paths[1])
    with pytest.raises(FileNotFoundError, match=r"gone\.parquet: this shard of the snapshot is gone"):
        list(replace(reader, shards=replace(reader.shards, paths=paths)).read([0, 1]))


@pytest.mark.parametrize("max_captions", [1, 10, 23, 1000])
def test_captions_are_in_the_snapshots_order(reader: StepReader, max_captions: int) -> None:
    expected: list[str] = make_pairs(NUM_ROWS)["caption"].to_pylist()[:max_captions]
    assert list(reader.shards.captions(max_captions)) == expected


def test_captions_that_are_taken_down_are_left_out(reader: StepReader) -> None:
    infos = (reader.shards.infos[0], replace(reader.shards.infos[1], taken_down=((0, 3), (2, 4))))
    expected = make_pairs(NUM_ROWS)["caption"].to_pylist()
    del expected[49], expected[28]
    assert list(replace(reader.shards, infos=infos).captions(1000)) == expected


def test_an_undecodable_image_is_an_error_that_names_the_row(reader: StepReader, tmp_path: Path) -> None:
    table = make_pairs(50)
    images = pa.array([b"no image"] * 50, pa.large_binary())
    broken = tmp_path / "broken.parquet"
    pq.write_table(table.set_column(table.schema.get_field_index("image"), "image", images), broken)
    infos = (ShardInfo(str(broken), (50,)),)
    wrong = replace(
        reader,
        shards=Shards(pyarrow.fs.LocalFileSystem(), (str(broken),), infos),
        plan=Plan(infos, global_batch_size=BATCH, shuffle_row_groups=1, seed=0),
    )
    _, [first] = wrong.plan.share(0, [BATCH], 0)
    message = rf"broken\.parquet: row {first.rows[0]} of row group 0: an image of 8 bytes cannot be decoded"
    with pytest.raises(ValueError, match=message):
        next(iter(wrong.read([0])))


def test_a_shard_without_rows_is_never_opened(reader: StepReader, tmp_path: Path) -> None:
    """An empty shard is in no step. A snapshot of empty shards has no batch (test_plan.py)."""
    infos = (ShardInfo("missing.parquet", ()), *reader.shards.infos)
    plan = Plan(infos, global_batch_size=BATCH, shuffle_row_groups=3, seed=0)
    shards = replace(reader.shards, paths=(str(tmp_path / "missing.parquet"), *reader.shards.paths), infos=infos)
    with_empty_shard, steps = replace(reader, shards=shards, plan=plan), range(plan.steps_per_epoch)
    for arrays, expected in zip(with_empty_shard.read(steps), reader.read(steps), strict=True):
        assert all(np.array_equal(arrays[name], expected[name]) for name in expected)
