from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.eval.own_pictures import contact_sheet
from pipeline.eval.own_pictures.contact_sheet import check_picture, draw_guesses, draw_matches
from pipeline.eval.own_pictures.own_images import ImageFile
from pipeline.eval.own_pictures.own_texts import Guess, Match
from tests.pipeline.eval.pictures import draw

LABELS = (Guess("a red circle", 0.75), Guess("costs $5, or _more_ {and}\n" * 9, 0.25), Guess("日本語", 0.0))
ACCENT = (13, 106, 99)


def make_files(folder: Path, count: int) -> list[ImageFile]:
    files = []
    for index in range(count):
        name = "long name " * 9 + ".jpg" if index == 1 else f"{index}.jpg"
        (folder / name).write_bytes(draw("circle", "red"))
        files.append(ImageFile(folder / name, named=True))
    return files


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def count_pixels(picture: np.ndarray, colour: tuple[int, int, int]) -> int:
    """The number of pixels of about this colour."""
    return int((np.abs(picture - colour).max(axis=2) < 40).sum())


def test_lengths_of_bars_are_proportional_to_the_probabilities(tmp_path: Path) -> None:
    files = make_files(tmp_path, 1)
    areas = []
    for probability in (0.25, 0.5, 1.0):
        draw_guesses(str(tmp_path / "a.png"), files, [(Guess("a red circle", probability),)])
        areas.append(count_pixels(pixels(tmp_path / "a.png"), ACCENT))
    assert areas == [pytest.approx(areas[2] * share, rel=0.05) for share in (0.25, 0.5, 1.0)]
    assert areas[2] > 1_000


def test_the_whole_image_is_shown(tmp_path: Path) -> None:
    Image.new("RGB", (400, 40), (213, 55, 45)).save(tmp_path / "wide.png")
    draw_matches(str(tmp_path / "a.png"), "red", [ImageFile(tmp_path / "wide.png", named=True)], [Match(0, 0.5)])
    rows, columns = np.nonzero(np.abs(pixels(tmp_path / "a.png") - (213, 55, 45)).max(axis=2) < 20)
    assert np.ptp(columns) == pytest.approx(10 * np.ptp(rows), rel=0.1)


@pytest.mark.parametrize(("count", "columns"), [(2, 1), (3, 2), (9, 2)])
def test_sheets_of_several_images(count: int, columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contact_sheet, "MAX_IMAGES", 6)
    files = make_files(tmp_path, count)
    draw_guesses(str(tmp_path / "a.jpg"), files, [LABELS] * count)
    several = pixels(tmp_path / "a.jpg").shape
    draw_guesses(str(tmp_path / "b.jpg"), files[:1], [LABELS])
    first = pixels(tmp_path / "b.jpg").shape
    assert several[1] == first[1] if columns == 1 else several[1] > 1.8 * first[1]
    rows = -(-min(count, 6) // columns)
    assert several[0] == pytest.approx(rows * first[0], rel=0.3)


def test_an_image_of_16_bits_is_not_white(tmp_path: Path) -> None:
    Image.fromarray(np.full((40, 40), 100 * 257, np.uint16)).save(tmp_path / "grey.png")
    draw_matches(str(tmp_path / "a.png"), "grey", [ImageFile(tmp_path / "grey.png", named=True)], [Match(0, 0.5)])
    assert count_pixels(pixels(tmp_path / "a.png"), (100, 100, 100)) > 50_000


def test_a_sheet_of_search_results(tmp_path: Path) -> None:
    files = make_files(tmp_path, 7)
    draw_matches(str(tmp_path / "a.svg"), "red $x$ <b>" * 30, files, [Match(6, 0.5), Match(1, -0.25)])
    svg = (tmp_path / "a.svg").read_text()
    assert svg.count("<image") == 2


@pytest.mark.parametrize(
    ("path", "kind", "message"),
    [
        ("out", ValueError, "picture=out: must end with one of .png"),
        ("out.txt", ValueError, "picture=out.txt: must end"),
        ("nowhere/out.png", FileNotFoundError, "picture=nowhere/out.png: the folder 'nowhere' does not exist"),
    ],
)
def test_invalid_paths_of_a_picture(path: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        check_picture(path)


def test_valid_paths_of_a_picture(tmp_path: Path) -> None:
    check_picture(str(tmp_path / "out.PNG"))
    check_picture("out.pdf")
