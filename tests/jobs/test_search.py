"""jobs.search, run through its command line."""

from pathlib import Path

import pytest
from PIL import Image

import pipeline
from jobs.options.launch import launch
from jobs.search import SearchJob, main
from tests.pipeline.eval.models import save_small_model
from tests.pipeline.eval.pictures import COLOURS, SHAPES, draw


@pytest.fixture
def model(tmp_path: Path) -> str:
    save_small_model(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for colour in COLOURS:
        (tmp_path / "pictures" / colour).mkdir(parents=True)
        for shape in SHAPES:
            (tmp_path / "pictures" / colour / f"{shape}.jpg").write_bytes(draw(shape, colour))
    return tmp_path / "pictures"


def run(*argv: str) -> None:
    launch(SearchJob, main, argv, words="images")


def test_results_equal_the_models_own_ranking(model: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(str(folder), "--model", model, "--text", "a red circle", "--top", "4", "--picture", str(folder / "out.png"))
    network, preprocess, tokenize = pipeline.load(model)
    found = []
    for path in sorted(folder.rglob("*.jpg")):
        with Image.open(path) as image:
            logits, _ = network(preprocess(image).unsqueeze(0), tokenize("a red circle"))
        found.append((logits.item() / network.logit_scale.exp().item(), path))
    found.sort(key=lambda row: -row[0])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == [str(path) for _, path in found[:4]]
    assert [float(line.split()[0]) for line in lines] == pytest.approx([score for score, _ in found[:4]], abs=6e-4)
    with Image.open(folder / "out.png") as picture:
        assert picture.width > picture.height


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--text", " "], "text: give what to look for"),
        ([], "the following arguments are required: text"),
        (["--text", "a dog", "--top", "many"], "--top: expected int, got 'many'"),
    ],
)
def test_user_errors_end_with_one_line(
    options: list[str], message: str, model: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(str(folder), "--model", model, *options)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
