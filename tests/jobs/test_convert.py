import logging
from pathlib import Path

import pytest
import torch

import pipeline
from jobs import convert
from jobs.convert import ConvertJob
from jobs.options.launch import launch
from pipeline.model.config import MODELS
from pipeline.model.tokenizer.tokenizer import Tokenizer
from pipeline.model.weights import foreign_folders, model_folder
from pipeline.model.weights.model_folder import Model
from tests.pipeline.model.weights.test_convert import TRANSFORMER, clip, equal


@pytest.fixture(autouse=True)
def _table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "mini", TRANSFORMER)


def refuse(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a conversion that must fail, and return its error line."""
    with pytest.raises(SystemExit) as stopped:
        launch(ConvertJob, convert.main, arguments)
    assert stopped.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    return line


def test_a_model_is_unchanged_after_conversion_through_all_styles(tmp_path: Path) -> None:
    folders = [tmp_path / "0"]
    model_folder.save(Model(clip(), Tokenizer.released(600, 12)), folders[0])
    for number, style in enumerate(("openai", "open_clip", "huggingface", "ours"), start=1):
        folders.append(tmp_path / str(number))
        source = folders[-2] / "model.safetensors" if number == 2 else folders[-2]
        launch(ConvertJob, convert.main, [f"--model={source}", f"--style={style}", f"--output={folders[-1]}"])
        assert not (folders[-1] / "tokenizer.json").exists() or style == "ours"
    network, _, tokenize = pipeline.load(folders[-1])
    assert equal(network, clip())
    assert torch.equal(tokenize("a cat"), Tokenizer.released(600, 12)("a cat"))


def test_a_models_own_vocabulary_is_written_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    words = " ".join(f"{first}{second}" for first in "abcdefghijklm" for second in "nopqrstuvwxyz")
    own = Tokenizer.train([words, words], 600, 12)
    model_folder.save(Model(clip(), own), tmp_path / "own")
    with caplog.at_level(logging.WARNING):
        launch(
            ConvertJob, convert.main, [f"--model={tmp_path / 'own'}", "--style=openai", f"--output={tmp_path / 'out'}"]
        )
    assert "the model has its own vocabulary" in caplog.text
    assert (tmp_path / "out" / "tokenizer.json").read_text() == own.to_json()


def test_models_that_cannot_be_converted_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = f"--output={tmp_path / 'out'}"
    assert "no weights at" in refuse(capsys, f"--model={tmp_path / 'none.pt'}", "--style=ours", output)
    folder = tmp_path / "hf"
    folder.mkdir()
    for name, data in foreign_folders.to_files(clip(), "huggingface").items():
        (folder / name).write_bytes(data)
    line = refuse(capsys, f"--model={folder}", "--name=VIT-B32", output)
    assert "did you mean ViT-B/32" in line
    assert "style=huggingface has no names for this model" in refuse(capsys, f"--model={folder}", "--name=RN50", output)
    assert "--style: expected one of" in refuse(capsys, f"--model={folder}", "--style=keras", output)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    line = refuse(capsys, f"--model={folder}", output)
    assert f"{weights}: damaged" in line
    assert [file.name for file in (tmp_path / "out").glob("*.safetensors")] == []
    torch.save({"a": Path}, tmp_path / "program.pt")
    assert "refused, because reading it would run code" in refuse(capsys, f"--model={tmp_path / 'program.pt'}", output)
