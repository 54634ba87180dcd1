from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import ImageEnhance, ImageOps

from cluster.parts import Output
from cluster.runs import Run
from cluster.stages import Stages
from pipeline.data.duplicates.dedupe import mark, with_spares
from pipeline.data.duplicates.duplicate_graph import DedupeConfig
from pipeline.data.flows.duplicates_flow import duplicates, pictures
from pipeline.reasons import Reason
from tests.pipeline.data.rows import encode, fetched, photo_like

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_local")]

NUM_PARTS, NUM_PICTURES = 3, 8
COLUMNS = ["part", "kept_part", "pair_id", "kept_id", "why"]


def images() -> pa.Table:
    """Five images of each picture: large, smaller, brighter, mirrored, and the file of the large image again."""
    jpgs, sides, files, captions = [], [], [], []
    for number in range(NUM_PICTURES):
        photo = photo_like(number)
        bright = ImageEnhance.Brightness(photo).enhance(1.05)
        for name, image, side in (
            ("large", photo, 400),
            ("small", photo.resize((60, 45)), 60),
            ("bright", bright, 300),
            ("mirrored", ImageOps.mirror(photo), 200),
            ("again", photo, 400),
        ):
            jpgs.append(encode(image, "JPEG"))
            sides.append(side)
            files.append(f"{number}-{'large' if name == 'again' else name}")
            captions.append(f"picture {number}, {name}")
    return fetched(
        jpg=jpgs,
        sha256=files,
        original_width=sides,
        original_height=sides,
        caption=captions,
        caption_source=["alt"] * len(jpgs),
        spare_captions=[[]] * len(jpgs),
    )


def part_of(table: pa.Table, part: int, columns: Sequence[str]) -> pa.Table:
    return table.take(pa.array(range(part, table.num_rows, NUM_PARTS), pa.int64())).select(list(columns))


def find_duplicates(
    folder: Path, table: pa.Table, config: DedupeConfig, near: Output | None = None
) -> tuple[Output, Output, Output]:
    stages = Stages(Run.open(str(folder), {}))

    def read(part: int, columns: Sequence[str]) -> pa.Table:
        return part_of(table, part, columns)

    hashed = pictures(stages, NUM_PARTS, read, config, 4)
    return hashed, *duplicates(stages, NUM_PARTS, read, hashed, near, config, 4)


def test_one_image_of_each_picture_is_kept_with_all_captions(tmp_path: Path) -> None:
    table = images()
    config = DedupeConfig(mirrored=True)
    _, at_once, spares = find_duplicates(tmp_path / "at once", table, config)
    kept = []
    for part in range(NUM_PARTS):
        rows, dropped, texts = part_of(table, part, table.column_names), at_once.bucket(part), spares.bucket(part)
        assert dropped is not None
        marked = mark(rows, dropped)
        kept += (with_spares(marked, texts) if texts else marked).filter(marked["reason"].is_null()).to_pylist()
    assert len(kept) == NUM_PICTURES
    for row in kept:
        number = row["sha256"][0]
        assert row["sha256"] == f"{number}-large"
        assert len(row["spare_captions"]) == 4
        assert all(text.startswith(f"picture {number}, ") for text in row["spare_captions"])
    whys = [row["why"] for part in range(NUM_PARTS) for row in at_once.bucket(part).to_pylist()]  # type: ignore[union-attr]
    assert {why: whys.count(why) for why in sorted(set(whys))} == {
        Reason.DUPLICATE_SHA256: NUM_PICTURES,
        Reason.DUPLICATE_PERCEPTUAL: 2 * NUM_PICTURES,
        Reason.DUPLICATE_TURNED: NUM_PICTURES,
    }
    _, in_rounds, _ = find_duplicates(tmp_path / "in rounds", table, DedupeConfig(mirrored=True, max_links_at_once=0))
    assert (tmp_path / "in rounds" / "spread-1").is_dir()
    for part in range(NUM_PARTS):
        first, second = at_once.bucket(part), in_rounds.bucket(part)
        assert first is not None
        assert second is not None
        assert first.sort_by("pair_id") == second.sort_by("pair_id")


def test_without_images_there_are_no_duplicates(tmp_path: Path) -> None:
    hashed, found, spares = find_duplicates(tmp_path, images().slice(0, 0), DedupeConfig())
    assert (hashed.num_rows, found.num_rows, spares.num_rows) == (0, 0, 0)
