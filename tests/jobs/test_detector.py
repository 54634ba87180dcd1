import hashlib
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster import storage
from jobs.detector import DetectorJob, main
from jobs.options.encoders import load_encoder
from jobs.options.launch import launch
from pipeline.data.snapshots.commit import commit
from pipeline.data.snapshots.snapshot import QUERY_COUNTS, Shard
from pipeline.schemas import PAIRS, conform
from tests.pipeline.data.rows import encode, ids, photo_like

IMAGES = [encode(photo_like(seed), "JPEG") for seed in range(40)]


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    """A snapshot of 40 images in one shard."""
    table = conform(pa.table({"pair_id": ids(40), "image": pa.array(IMAGES, pa.large_binary())}), PAIRS)
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=16, write_page_checksum=True)
    data = sink.getvalue()
    sha256 = hashlib.sha256(data).hexdigest()
    path = f"data/run/part-00000-{sha256[:16]}.parquet"
    storage.write_bytes(str(tmp_path / "dataset" / path), data)
    shard = Shard(path=path, num_rows=40, num_bytes=len(data), sha256=sha256, row_groups=(16, 16, 8))
    commit(str(tmp_path / "dataset"), [shard], QUERY_COUNTS.empty_table(), {})
    return str(tmp_path / "dataset")


def test_a_detector_is_trained_on_a_snapshot_and_a_rerun_does_nothing(dataset: str, tmp_path: Path) -> None:
    output = str(tmp_path / "run")
    options = ["--detector=tiny", "--max_images=40", "--train.batch_size=8", "--train.num_images=24"]
    launch(DetectorJob, main, [f"--snapshot={dataset}", f"--output={output}", *options])
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [step["number"] for step in steps] == [0, 1, 2]
    assert load_encoder(f"{output}/model", 4, "cpu")(IMAGES[:3]).shape == (3, 128)
    weights = tmp_path / "run" / "model" / "detector.safetensors"
    before = weights.stat().st_mtime_ns
    launch(DetectorJob, main, [f"--snapshot={dataset}", f"--output={output}", *options])
    assert weights.stat().st_mtime_ns == before


def test_invalid_options_end_with_one_line(
    dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for options, message in (
        (["--detector=huge"], "detector=huge is not known"),
        (["--detector=tiny", "--device=cuda"], "device=cuda: this machine has no GPU"),
        (["--detector=tiny", "--train.batch_size=64"], "train.batch_size = 64: there are only 40 images"),
    ):
        with pytest.raises(SystemExit, match="2"):
            launch(DetectorJob, main, [f"--snapshot={dataset}", f"--output={tmp_path / options[-1]}", *options])
        assert message in capsys.readouterr().err
