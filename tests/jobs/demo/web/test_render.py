import hashlib
import io
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw

from jobs.demo.web.render import encode_jpeg, evaluation_sets, render
from jobs.demo.web.scenes import (
    BACKGROUNDS,
    COLOURS,
    COUNTS,
    DIGITS,
    NUMBER_WORDS,
    PATTERNS,
    SHAPES,
    WORDS,
    Scene,
    contrast,
    describe,
    sample_scene,
)


def plain(**changes: object) -> Scene:
    """A large solid red circle in the centre of a plain light square."""
    scene = Scene(
        kind="shape", shape="circle", colour="red", texture="solid", background="light", backdrop="plain", font="sans",
        seed=3,
    )  # fmt: skip
    return replace(scene, **changes)  # type: ignore[arg-type]


def mask_of(scene: Scene, size_px: int = 128) -> npt.NDArray[np.bool_]:
    """The pixels that are closer to the scene's colour than to its background."""
    pixels = np.asarray(render(scene, size_px), np.float64)
    near = np.linalg.norm(pixels - COLOURS[scene.colour], axis=-1)
    mask: npt.NDArray[np.bool_] = near < np.linalg.norm(pixels - BACKGROUNDS[scene.background], axis=-1)
    return mask


def num_blobs(mask: npt.NDArray[np.bool_]) -> int:
    """The number of connected regions of at least 20 pixels."""
    image, num_found = Image.fromarray(mask.astype(np.uint8) * 255), 0
    for y, x in np.argwhere(mask):
        if image.getpixel((int(x), int(y))) == 255:
            ImageDraw.floodfill(image, (int(x), int(y)), 128)
            num_found += int(np.count_nonzero(np.asarray(image) == 128) >= 20)
            image = image.point(lambda value: 0 if value == 128 else value)
    return num_found


def test_the_same_scene_gives_the_same_bytes() -> None:
    def digest(seed: int) -> str:
        rng = np.random.default_rng(seed)
        scenes = [sample_scene(rng) for _ in range(40)]
        data = b"".join(encode_jpeg(render(scene, 96)) + describe(scene, rng).encode() for scene in scenes)
        return hashlib.sha256(data).hexdigest()

    assert digest(1) == digest(1)
    assert digest(1) != digest(2)


def test_every_part_of_a_scene_is_sampled_and_drawn() -> None:
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng) for _ in range(600)]
    for scene in scenes:
        image = render(scene, 48)
        assert image.mode == "RGB"
        assert min(image.size) == 48
        assert image.width / image.height == pytest.approx(scene.aspect, abs=0.02)
        # The picture is not a single colour, so something is drawn.
        assert np.asarray(image).std(axis=(0, 1)).max() > 4
    assert {scene.shape for scene in scenes} == {*SHAPES, *PATTERNS, ""}
    assert {scene.colour for scene in scenes} == set(COLOURS)
    assert {scene.count for scene in scenes} == set(COUNTS)
    kinds = Counter(scene.kind for scene in scenes)
    assert set(kinds) == {"shape", "digit", "word", "pattern"}
    assert 0.6 < kinds["shape"] / len(scenes) < 0.8


def test_colours_contrast_with_the_background() -> None:
    rng = np.random.default_rng(0)
    for _ in range(400):
        scene = sample_scene(rng)
        if scene.kind == "pattern":
            assert contrast(scene.colour, scene.second_colour) >= 150
        else:
            assert contrast(scene.colour, scene.background) >= 105


@pytest.mark.parametrize("colour", COLOURS)
def test_the_middle_of_a_circle_has_its_colour(colour: str) -> None:
    background = "dark" if colour in ("white", "yellow", "pink") else "light"
    pixels = np.asarray(render(plain(colour=colour, background=background), 100), np.float64)
    middle = pixels[45:55, 45:55].mean(axis=(0, 1))
    distances = {name: np.linalg.norm(middle - rgb) for name, rgb in COLOURS.items()}
    assert min(distances, key=lambda name: distances[name]) == colour


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", COUNTS)
def test_the_number_of_shapes_is_the_scenes(shape: str, count: int) -> None:
    for position in ("centre",) if count == 1 else ("row", "column", "scattered"):
        for seed in range(6):
            scene = plain(
                shape=shape, count=count, position=position, seed=seed, size="medium" if count > 1 else "large"
            )
            assert num_blobs(mask_of(scene)) == count


@pytest.mark.parametrize(
    ("position", "x", "y"),
    [("centre", 0, 0), ("left", -1, 0), ("right", 1, 0), ("top", 0, -1), ("bottom", 0, 1), ("bottom left", -1, 1)],
)
def test_the_position_of_a_shape_is_the_scenes(position: str, x: int, y: int) -> None:
    for seed in range(5):
        mask = mask_of(plain(position=position, size="small", seed=seed))
        down, right = np.argwhere(mask).mean(axis=0) / np.array(mask.shape) - 0.5
        assert np.sign(round(2.2 * right)) == x
        assert np.sign(round(2.2 * down)) == y


def test_sizes_are_ordered_and_textures_have_gaps() -> None:
    areas = [mask_of(plain(size=size)).mean() for size in ("small", "medium", "large")]
    assert areas[0] < 0.6 * areas[1]
    assert areas[1] < 0.6 * areas[2]
    for texture in ("striped", "dotted", "checkered"):
        assert 0.4 * areas[2] < mask_of(plain(texture=texture)).mean() < 0.85 * areas[2]


def test_arrows_point_in_the_scenes_direction() -> None:
    for direction, axis, sign in (("up", 0, -1), ("down", 0, 1), ("left", 1, -1), ("right", 1, 1)):
        mask = mask_of(plain(shape="arrow", direction=direction, seed=5))
        # The head is wider than the shaft, so the widest line is on the side to which the arrow points.
        widths = mask.sum(axis=1 - axis)
        inside = np.flatnonzero(widths)
        assert np.sign(int(widths.argmax()) - (inside[0] + inside[-1]) / 2) == sign


def test_digits_differ_from_each_other() -> None:
    masks = [mask_of(plain(kind="digit", shape="", text=str(digit))) for digit in DIGITS]
    for i, first in enumerate(masks):
        for second in masks[i + 1 :]:
            assert (first ^ second).sum() > 0.1 * first.sum()


def test_captions_are_true_of_their_scenes() -> None:
    rng = np.random.default_rng(0)
    nouns = {**{shape: shape for shape in SHAPES}, "disc": "circle", "hoop": "ring", "plus sign": "cross"}
    opposites = {
        "small": "large",
        "little": "large",
        "tiny": "large",
        "large": "small",
        "big": "small",
        "huge": "small",
    }
    for _ in range(3000):
        scene = sample_scene(rng)
        text = describe(scene, rng).lower().replace("crosses", "cross")
        quoted = re.sub(rf"\b{scene.text}\b", "", text) if scene.kind == "word" else text
        words = set(re.findall(r"\w+", quoted))

        def mentioned(names: object, words: set[str] = words) -> set[str]:
            return {name for name in names if {name, f"{name}s"} & words}  # type: ignore[attr-defined]

        assert mentioned(COLOURS) <= {scene.colour, scene.second_colour}
        assert {nouns[name] for name in nouns if re.search(rf"\b{name}s?\b", quoted)} <= {scene.shape}
        assert mentioned(BACKGROUNDS) <= {scene.background}
        assert scene.size not in {opposites[word] for word in opposites if word in words}
        if scene.kind == "shape":
            assert scene.shape in {nouns[name] for name in nouns if re.search(rf"\b{name}s?\b", text)}
            assert mentioned(NUMBER_WORDS) <= {NUMBER_WORDS[scene.count]}
            assert {"up", "down"} & words <= {scene.direction, scene.position}
        if scene.kind == "digit":
            assert mentioned(NUMBER_WORDS) | set(re.findall(r"\d", text)) <= {scene.text, NUMBER_WORDS[int(scene.text)]}
        if scene.kind == "word":
            assert scene.text in text
        assert not re.search(r"  |\ba [aeio]|\{|\}| ,", text), text


def test_captions_are_varied_and_detail_adds_words() -> None:
    rng = np.random.default_rng(0)
    scene = sample_scene(rng, "shape", count=1)
    assert len({describe(scene, rng) for _ in range(300)}) > 150
    scenes = [sample_scene(rng) for _ in range(1000)]
    assert len({describe(scene, rng) for scene in scenes}) > 980
    terse, full = ([len(describe(scene, rng, detail).split()) for scene in scenes] for detail in (0.0, 1.0))
    assert np.mean(full) > np.mean(terse) + 3
    assert min(terse) >= 2


def test_evaluation_sets_have_the_documented_format(tmp_path: Path) -> None:
    evaluation_sets(tmp_path, seed=1, per_class=3)
    sizes = {}
    for folder in sorted(tmp_path.iterdir()):
        record = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        table = pq.read_table(folder / "test.parquet")
        assert record["name"] == folder.name
        assert table.schema.field("image").type == pa.large_binary()
        for data in table["image"].to_pylist():
            with Image.open(io.BytesIO(data)) as image:
                assert image.format == "JPEG"
                assert 96 <= min(image.size) <= 200
        sizes[folder.name] = table.num_rows
        if record["kind"] == "classification":
            assert table.schema.field("label").type == pa.int32()
            labels = Counter(table["label"].to_pylist())
            assert labels == dict.fromkeys(range(len(record["classes"])), 3)
            assert all("{}" in template for template in record["templates"])
    assert sizes == {
        "rendered_shape": 24, "rendered_colour": 30, "rendered_count": 15, "rendered_digit": 30, "rendered_pairs": 30,
    }  # fmt: skip
    pairs = pq.read_table(tmp_path / "rendered_pairs" / "test.parquet")
    assert pairs.schema.field("captions").type == pa.list_(pa.string())
    captions = [caption for row in pairs["captions"].to_pylist() for caption in row]
    assert len(set(captions)) == len(captions) == 60


def test_the_seed_determines_evaluation_sets(tmp_path: Path) -> None:
    def digest(name: str, seed: int) -> str:
        evaluation_sets(tmp_path / name, seed, per_class=1)
        files = sorted((tmp_path / name).rglob("*.*"))
        return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()

    assert digest("a", 1) == digest("b", 1)
    assert digest("c", 2) != digest("d", 1)


def test_class_names_are_words_of_the_captions() -> None:
    rng = np.random.default_rng(0)
    words = Counter(re.findall(r"\w+", " ".join(describe(sample_scene(rng), rng).lower() for _ in range(3000))))
    for name in (*SHAPES, *COLOURS, *NUMBER_WORDS, *map(str, DIGITS)):
        assert words[name] >= 15, name
    texts = " ".join(describe(sample_scene(rng, "word"), rng) for _ in range(1000))
    assert {word for word in WORDS if not re.search(rf"\b{word}\b", texts)} == set()
