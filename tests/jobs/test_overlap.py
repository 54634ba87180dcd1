import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.options.encoders import EncoderConfig, load_encoder
from jobs.options.inputs import ENCODER_KEY, open_overlap_index, read_overlap_index
from jobs.options.launch import launch
from jobs.overlap import OverlapJob, main
from pipeline.data.duplicates.embeddings import to_column, to_matrix
from pipeline.data.duplicates.overlap import OverlapConfig, OverlapIndex, find_overlaps
from pipeline.data.images.phash import perceptual_hash
from pipeline.eval.flows.benchmark_flow import open_sets
from pipeline.model.encoders.duplicate_detector import detector_config, to_files
from pipeline.schemas import OVERLAP_INDEX
from pipeline.train.detector.duplicate_detector import new_detector
from tests.pipeline.data.duplicates.test_embeddings import unit
from tests.pipeline.data.duplicates.test_overlap import BALANCED, index_rows
from tests.pipeline.eval.pictures import COLOURS, SHAPES, draw, make_sets

IMAGES = [draw(shape, colour) for colour in COLOURS for shape in SHAPES]


@pytest.fixture
def job(tmp_path: Path) -> OverlapJob:
    make_sets(tmp_path / "sets")
    (tmp_path / "detector").mkdir()
    for name, data in to_files(new_detector(detector_config("tiny"), 0)).items():
        (tmp_path / "detector" / name).write_bytes(data)
    encoder = EncoderConfig(model=str(tmp_path / "detector"))
    return OverlapJob(datasets=str(tmp_path / "sets"), encoder=encoder, output=str(tmp_path / "overlap"))


@pytest.mark.faults
@pytest.mark.usefixtures("ray_local")
def test_every_image_of_every_set_is_in_the_index(job: OverlapJob, tmp_path: Path) -> None:
    main(job)
    index, encoder = read_overlap_index(str(tmp_path / "overlap" / "index.parquet"))
    assert index.schema.equals(OVERLAP_INDEX)
    assert encoder is not None
    assert len(encoder) == 64
    sha256 = {source.dataset.name: source.sha256 for source in open_sets(job.datasets)}
    items = [(row["benchmark"], row["set_sha256"], row["split"], row["item"]) for row in index.to_pylist()]
    assert items == [(name, sha256[name], "test", item) for name in ("colours", "pairs") for item in range(15)]
    assert index["phash"].to_pylist() == perceptual_hash(IMAGES).tolist() * 2
    expected = load_encoder(str(job.encoder.model), 8, "cpu")(IMAGES)
    assert np.allclose(to_matrix(index["embedding"])[:15], expected, atol=2e-3)
    about = json.loads((tmp_path / "overlap" / "index.json").read_text())
    assert about["pairs"]["num_images"] == 15
    assert about["pairs"]["near_pairs"]["0"] > 0  # the same shape in two colours has the same hash

    pictures = pq.read_table(tmp_path / "overlap" / "index.parquet").slice(7, 1)
    pictures = pictures.select(["phash", "embedding"]).append_column("pair_id", [["x"]])
    found = find_overlaps(pictures, OverlapIndex(index, OverlapConfig(radius=-1, min_similarity=0.9999)))
    assert set(found["item"].to_pylist()) >= {7}


def test_an_index_requires_the_encoder_that_made_it(tmp_path: Path) -> None:
    index_uri = str(tmp_path / "index.parquet")
    index = index_rows([BALANCED], ["a"], to_column(unit(1)))
    pq.write_table(index.replace_schema_metadata({ENCODER_KEY: b"ab"}), index_uri)
    assert open_overlap_index(OverlapConfig(), None) is None
    found = open_overlap_index(OverlapConfig(index=index_uri), "ab")
    assert found is not None
    assert found.has_embeddings
    for own, message in (("cd", "uses a different encoder"), (None, "this run has no encoder")):
        with pytest.raises(ValueError, match=message):
            open_overlap_index(OverlapConfig(index=index_uri), own)
    hashes_only = open_overlap_index(OverlapConfig(index=index_uri, min_similarity=2), None)
    assert hashes_only is not None
    pq.write_table(index.drop_columns(["phash"]), index_uri)
    with pytest.raises(
        ValueError, match=r"not an overlap index, the columns \['phash'\] are missing; make one with jobs.overlap"
    ):
        open_overlap_index(OverlapConfig(index=index_uri), None)


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """A job with thresholds."""

    overlap: OverlapConfig = field(default_factory=OverlapConfig)


def test_thresholds_of_single_sets_can_be_given_in_toml_and_as_options(tmp_path: Path) -> None:
    given: list[Thresholds] = []
    (tmp_path / "x.toml").write_text('[overlap]\nmode = "mark"\n[overlap.radius_of]\nmnist = -1\n"a-b.c" = 2\n')
    launch(Thresholds, given.append, ["--config", str(tmp_path / "x.toml")])
    launch(Thresholds, given.append, ["--overlap.min_similarity_of", '{"mnist": 0.9}'])
    expected = [OverlapConfig(mode="mark", radius_of={"mnist": -1, "a-b.c": 2})]
    assert [job.overlap for job in given] == [*expected, OverlapConfig(min_similarity_of={"mnist": 0.9})]


def test_a_missing_encoder_or_data_set_ends_with_one_line(job: OverlapJob, capsys: pytest.CaptureFixture[str]) -> None:
    for option, message in (("encoder.model", "contains no image encoder"), ("datasets", "does not exist")):
        options = {"datasets": job.datasets, "encoder.model": job.encoder.model, "output": job.output} | {
            option: "/nowhere"
        }
        with pytest.raises(SystemExit, match="2"):
            launch(OverlapJob, main, [f"--{name}={value}" for name, value in options.items()])
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert "/nowhere" in line
        assert message in line
