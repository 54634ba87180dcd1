"""jobs.classify, run through its command line."""

import os
import re
import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

from jobs.classify import ClassifyJob, main
from jobs.options.launch import launch
from tests.pipeline.eval.models import save_small_model
from tests.pipeline.eval.pictures import draw

LABELS = ("--labels", "a red circle", "a blue square", "a green triangle")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    save_small_model(folder)
    return str(folder)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of the command: pictures/ with one image, and a subfolder with another."""
    monkeypatch.chdir(tmp_path)
    for name, shape, colour in (
        ("pictures/circle.jpg", "circle", "red"),
        ("pictures/more/square.png", "square", "blue"),
    ):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(draw(shape, colour))
    return tmp_path


def run(*argv: str) -> None:
    launch(ClassifyJob, main, argv, words="images")


def refusal(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        run(*argv)
    assert stopped.value.code == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def parse(printed: str) -> dict[str, list[tuple[float, str]]]:
    """Parse the output into percentages and labels by image."""
    guesses: dict[str, list[tuple[float, str]]] = {}
    name = ""
    for line in printed.splitlines():
        if match := re.fullmatch(r" {2,4}(\d{1,3}\.\d)%  (.*)", line):
            guesses[name].append((float(match[1]), match[2]))
        else:
            name = line
            guesses[name] = []
    return guesses


def test_every_label_of_every_image_is_printed(
    model: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["classify", str(folder / "pictures"), "--model", model, *LABELS])
    monkeypatch.delitem(sys.modules, "jobs.classify")
    runpy.run_module("jobs.classify", run_name="__main__", alter_sys=True)
    found = parse(capsys.readouterr().out)
    assert list(found) == [str(folder / "pictures" / name) for name in ("circle.jpg", "more/square.png")]
    for guesses in found.values():
        assert sorted(label for _, label in guesses) == sorted(LABELS[1:])
        assert guesses == sorted(guesses, key=lambda guess: -guess[0])
        assert sum(share for share, _ in guesses) == pytest.approx(100, abs=0.2)


@pytest.mark.usefixtures("folder")
def test_image_arguments_can_be_anywhere_on_the_command_line(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = []
    for argv in (
        ["pictures/circle.jpg", "--model", model, *LABELS],
        ["--model", model, "pictures/circle.jpg", *LABELS],
        [f"--model={model}", *LABELS, "--", "pictures/circle.jpg"],
        ["--images", "pictures/circle.jpg", *LABELS, "--model", model],
    ):
        run(*argv)
        outputs.append(capsys.readouterr().out)
    assert len(set(outputs)) == 1
    assert outputs[0].startswith("pictures/circle.jpg\n")


@pytest.mark.usefixtures("folder")
def test_a_file_name_that_is_not_utf_8(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    Path(name).write_bytes(draw("circle", "red"))
    run(name, "--model", model, *LABELS, "--picture", "out.png")
    assert list(parse(capsys.readouterr().out)) == ["caf\N{REPLACEMENT CHARACTER}.jpg"]


@pytest.mark.usefixtures("folder")
def test_top_limits_the_labels_and_several_templates_are_accepted(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run("pictures", "--model", model, *LABELS)
    plain = parse(capsys.readouterr().out)
    run("pictures", "--model", model, *LABELS, "--top", "1")
    assert parse(capsys.readouterr().out) == {name: guesses[:1] for name, guesses in plain.items()}
    run("pictures", "--model", model, *LABELS, "--template", "one {} in a photo", "look, {}!")
    assert parse(capsys.readouterr().out).keys() == plain.keys()


@pytest.mark.usefixtures("folder")
def test_the_picture_option_draws_the_results(model: str) -> None:
    run("pictures", "--model", model, *LABELS, "--picture", "out.png")
    with Image.open("out.png") as picture:
        assert picture.width > 500


@pytest.mark.usefixtures("folder")
def test_unreadable_images_of_a_folder_are_logged(
    model: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    Path("pictures/broken.jpg").write_bytes(draw("circle", "red")[:900])
    run("pictures", "--model", model, *LABELS)
    assert list(parse(capsys.readouterr().out)) == ["pictures/circle.jpg", "pictures/more/square.png"]
    assert re.search(r"pictures/broken\.jpg: image file is truncated", caplog.text)
    assert "1 of 3 images cannot be read" in caplog.text


@pytest.mark.usefixtures("folder")
def test_an_unreadable_named_file_ends_with_2_after_the_results_of_the_others(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("notes.txt").write_text("no image")
    with pytest.raises(SystemExit, match="2"):
        run("notes.txt", "pictures", "--model", model, *LABELS)
    captured = capsys.readouterr()
    assert list(parse(captured.out)) == ["pictures/circle.jpg", "pictures/more/square.png"]
    assert captured.err.endswith("error: images: cannot read notes.txt; the reasons are logged above\n")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["pictures"], "labels: give what may be in the images"),
        (["pictures", "--labels", "a dog", ""], "labels: a label is empty"),
        (["pictures", "--labels", "a dog", "a dog"], "labels: 'a dog' is given more than once"),
        (["pictures", "--labels", "a dog"], "labels: 'a dog' is the only label"),
        (["pictures", "--labels", "a dog", "A dog"], "are the same to the model"),
        (["pictures", *LABELS, "--template", "a photo"], "template 'a photo' must have exactly one {}"),
        (LABELS, "images: give an image or a folder"),
        (["gone.jpg", *LABELS], "images: the file or folder 'gone.jpg' does not exist"),
        (["empty", *LABELS], "images: the folder 'empty' contains no images"),
        (["notes.txt", *LABELS], "images: 0 of 1 files can be read; notes.txt: not an image in a known format"),
        (["pictures", *LABELS, "--model=gone"], "model=gone: does not exist; to use a model by its name, also give"),
        (["pictures", *LABELS, "--model=empty"], "empty is not a model"),
        (["pictures", *LABELS, "--model=timm/resnet50", "--weights=random"], "encodes images only"),
        (["pictures", *LABELS, "--picture=out.txt"], "picture=out.txt: must end with one of"),
        (["pictures", *LABELS, "--top=0"], "top = 0: must be at least 1"),
        (["pictures", *LABELS, "--device=gpu"], "device=gpu: "),
        (["pictures", *LABELS, "--labls", "x"], "unrecognized arguments: --labls"),
    ],
)
def test_user_errors_end_with_one_line_and_write_nothing(
    argv: list[str], message: str, model: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    Path("notes.txt").write_text("no image")
    assert message in refusal(capsys, f"--model={model}", "--", *argv)
    assert sorted(path.name for path in folder.iterdir()) == ["empty", "notes.txt", "pictures"]
