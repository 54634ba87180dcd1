"""Small images for the tests of the evaluation."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from pipeline.eval.sets.evaluation_sets import CAPTIONED, LABELLED

COLOURS = {"red": "#d5372d", "blue": "#2d6bd5", "green": "#2f9e44", "yellow": "#f2c230", "purple": "#8142c4"}
SHAPES = ("circle", "square", "triangle")


def draw(shape: str, colour: str, form: str = "JPEG") -> bytes:
    picture = Image.new("RGB", (160, 128), "#eceae4")
    canvas = ImageDraw.Draw(picture)
    if shape == "circle":
        canvas.ellipse((45, 25, 120, 100), fill=COLOURS[colour])
    elif shape == "square":
        canvas.rectangle((45, 25, 120, 100), fill=COLOURS[colour])
    else:
        canvas.polygon([(82, 22), (125, 104), (39, 104)], fill=COLOURS[colour])
    content = io.BytesIO()
    picture.save(content, form)
    return content.getvalue()


PAIRS = [(f"a {colour} {shape}", f"one {shape} in {colour}") for colour in COLOURS for shape in SHAPES]


def make_sets(folder: Path) -> None:
    """Write two evaluation sets of 15 images each, in row groups of 4: "colours" and "pairs"."""
    images = [draw(shape, colour) for colour in COLOURS for shape in SHAPES]
    labels = [index // len(SHAPES) for index in range(len(images))]
    tables = {
        "colours": pa.table({"image": images, "label": labels}, schema=LABELLED),
        "pairs": pa.table({"image": images, "captions": PAIRS}, schema=CAPTIONED),
    }
    descriptions: dict[str, dict[str, Any]] = {
        "colours": {"kind": "classification", "classes": list(COLOURS), "templates": ["a {} thing", "{}"]},
        "pairs": {"kind": "retrieval"},
    }
    for name, table in tables.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "dataset.json").write_text(json.dumps({"name": name} | descriptions[name]))
        pq.write_table(table, folder / name / "test.parquet", row_group_size=4)
