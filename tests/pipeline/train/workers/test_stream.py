import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

from pipeline.data.snapshots.epoch_order import ShardInfo
from pipeline.data.snapshots.reading import Shards
from pipeline.model.tokenizer.tokenizer import Tokenizer
from pipeline.train.config import TrainConfig
from pipeline.train.reading.batches import Arrays, StepReader
from pipeline.train.reading.plan import Plan
from pipeline.train.workers.stream import READS_AHEAD, checked, stream
from tests.pipeline.train.pairs import make_pairs

BATCH = 8
STEPS_PER_READ = 2


def arrays_of(step: int, num_rows: int = BATCH) -> Arrays:
    return {"step": np.full(num_rows, step, np.int64)}


def test_complete_arrays_pass() -> None:
    arrays = [arrays_of(step) for step in range(3, 6)]
    assert list(checked(iter(arrays), range(3, 6), BATCH)) == arrays


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ([arrays_of(3), arrays_of(5)], r"expected 8 samples of step 4, received 8 of steps \{5\}"),
        ([arrays_of(3), arrays_of(4, 7), arrays_of(5)], r"expected 8 samples of step 4, received 7 of steps \{4\}"),
        ([arrays_of(3)], r"expected 8 samples of step 4, received 0"),
        ([arrays_of(3), arrays_of(4), arrays_of(5), arrays_of(6)], "received samples after the last step"),
    ],
)
def test_missing_or_additional_rows_are_refused(arrays: list[Arrays], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        list(checked(iter(arrays), range(3, 6), BATCH))


def test_reading_tasks_do_not_import_torch() -> None:
    program = "import sys, pipeline.train.workers.stream; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_local")
def test_the_rows_read_ahead_of_a_slow_step_are_bounded(tmp_path: Path) -> None:
    """The bound is the number of waiting reads, not the length of the run. Each process creates only one reader."""
    table, path, notes = make_pairs(400), str(tmp_path / "0.parquet"), tmp_path / "notes"
    notes.mkdir()
    pq.write_table(table, path, row_group_size=40, write_page_checksum=True)
    infos = (ShardInfo(path, (40,) * 10),)

    @dataclass(frozen=True, kw_only=True)
    class NotingReader(StepReader):
        def read(self, steps: Sequence[int]) -> Iterator[Arrays]:
            for step, arrays in zip(steps, super().read(steps), strict=True):
                (notes / f"{step}-{id(self)}").touch()
                yield arrays

    reader = NotingReader(
        shards=Shards(pyarrow.fs.LocalFileSystem(), (path,), infos),
        plan=Plan(infos, global_batch_size=BATCH, shuffle_row_groups=3, seed=0),
        local_batch_sizes=(BATCH,),
        rank=0,
        seed=0,
        image_size=64,
        crop_share=0.9,
        tokenizer_json=Tokenizer.train(table["caption"].to_pylist(), 560, 14).to_json(),
        context_length=14,
    )
    steps, config = range(100), TrainConfig(global_batch_size=BATCH, rows_per_read=STEPS_PER_READ * BATCH)
    arrays = checked(stream(reader, steps, config), steps, BATCH)
    peaks = []
    for step in range(4):
        next(arrays)
        num_read = -1
        while num_read != (num_read := len(list(notes.iterdir()))):
            time.sleep(0.4)
        peaks.append(num_read - (step + 1))
    assert max(peaks) <= (READS_AHEAD + 2) * STEPS_PER_READ, "too many rows read ahead"
    assert len(list(arrays)) == 96
    names = [note.name.split("-") for note in notes.iterdir()]
    assert sorted(int(step) for step, _ in names) == list(steps), "each step is read once"
    assert len({reader for _, reader in names}) <= 2
