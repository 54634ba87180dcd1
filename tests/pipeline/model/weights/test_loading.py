"""Test pipeline.load with names, folders and files."""

import json
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
import safetensors.torch
import torch
from PIL import Image
from transformers import CLIPModel

import pipeline
from pipeline.model.config import MODELS
from pipeline.model.objectives.clip import CLIP
from pipeline.model.tokenizer.tokenizer import Tokenizer
from pipeline.model.weights import foreign_folders, model_folder
from pipeline.model.weights.convert import export_state
from pipeline.model.weights.model_folder import Model
from pipeline.model.weights.parameter_names import Style
from tests.pipeline.model.weights.test_convert import TRANSFORMER, clip, equal


@pytest.fixture(autouse=True)
def _table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add a small model with the paper's architecture to the table."""
    monkeypatch.setitem(MODELS, "mini", TRANSFORMER)


def write(folder: Path, style: Style) -> Path:
    """Write the files of a model in a style."""
    folder.mkdir()
    for name, data in foreign_folders.to_files(clip(), style).items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def own_folder(tmp_path: Path) -> Path:
    text = TRANSFORMER.text
    words = " ".join(f"{first}{second}" for first in "abcdefghijklm" for second in "nopqrstuvwxyz")
    tokenizer = Tokenizer.train([words, words], text.vocab_size, text.context_length)
    model_folder.save(Model(clip(), tokenizer), tmp_path / "own")
    return tmp_path / "own"


def test_a_name_gives_initial_values_that_depend_on_torchs_seed() -> None:
    torch.manual_seed(0)
    network, preprocess, tokenize = pipeline.load("mini")
    assert equal(network, clip(0))
    assert not network.training
    image = preprocess(Image.new("RGB", (50, 40), (10, 200, 30)))[None]
    tokens = tokenize(["a photo of a cat", "a photo of a dog"])
    assert tokens.shape == (2, 12)
    assert int(tokens.max()) == 599
    logits_per_image, logits_per_text = network(image, tokens)
    assert (logits_per_image.shape, logits_per_text.shape) == ((1, 2), (2, 1))


def test_the_models_for_laptops_have_a_full_vocabulary() -> None:
    for name in ("tiny", "small"):
        network, _, tokenize = pipeline.load(name)
        text = network.config.text
        assert tokenize("a cat").shape == (1, text.context_length)
        assert int(tokenize("a cat").max()) == text.vocab_size - 1


@pytest.mark.parametrize("style", ["open_clip", "huggingface"])
@pytest.mark.parametrize("with_name", [True, False])
def test_folders_of_other_tools(tmp_path: Path, style: Style, with_name: bool) -> None:
    folder = write(tmp_path / style, style)
    network, _, tokenize = pipeline.load("mini", weights=folder) if with_name else pipeline.load(folder)
    assert equal(network, clip())
    assert tokenize("a cat").shape == (1, 12)


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "bin"])
def test_files_of_weights(tmp_path: Path, suffix: str) -> None:
    state, file = export_state(clip(), "openai"), tmp_path / f"weights.{suffix}"
    if suffix == "safetensors":
        safetensors.torch.save_file(state, file)
    else:
        torch.save(state, file)
    for network, _, _ in (pipeline.load("mini", weights=file), pipeline.load(file)):
        assert equal(network, clip())


def test_own_folders_keep_their_tokenizer(own_folder: Path) -> None:
    by_name, by_path = pipeline.load("mini", weights=own_folder), pipeline.load(own_folder)
    for network, _, tokenize in (by_name, by_path):
        assert equal(network, clip())
        assert not torch.equal(tokenize("an bo"), pipeline.load("mini")[2]("an bo"))


def test_weights_of_another_model_raise(own_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="are not those of the model 'tiny'"):
        pipeline.load("tiny", weights=own_folder)
    with pytest.raises(ValueError, match=r"hf: the weights \(style huggingface\) are not those of .*missing"):
        pipeline.load("ViT-B/32", weights=write(tmp_path / "hf", "huggingface"))
    with pytest.raises(ValueError, match="give their folder"):
        pipeline.load(own_folder / "model.safetensors")


def test_missing_folders_and_files_raise(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no model at '.*nowhere'"):
        pipeline.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no weights at '.*nowhere'"):
        pipeline.load("mini", weights=tmp_path / "nowhere")
    folder = write(tmp_path / "empty", "huggingface")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"empty has no weights: it contains none of .*pytorch_model\.bin"):
        pipeline.load(folder)


def test_unknown_names_raise() -> None:
    with pytest.raises(ValueError, match=r"model=ViT-B-32 is not known; did you mean ViT-B/32"):
        pipeline.load("ViT-B-32")
    with pytest.raises(ValueError, match=r"model=vit-b32 is not known; did you mean ViT-B/32"):
        pipeline.load("vit-b32", weights="somewhere")
    with pytest.raises(FileNotFoundError, match=r"neither a file, a folder nor the name of a model \(RN50, "):
        pipeline.load("colossus")


@pytest.mark.parametrize(
    ("style", "file", "change", "message"),
    [
        ("huggingface", "config.json", {"model_type": "siglip"}, "model_type is 'siglip' instead of 'clip'"),
        (
            *("huggingface", "config.json", {"text_config": {"hidden_act": "gelu"}}),
            "text_config.hidden_act is gelu instead of quick_gelu",
        ),
        (
            *("huggingface", "config.json", {"vision_config": {"num_attention_heads": 4}}),
            "vision_config.num_attention_heads is 4 instead of 2",
        ),
        ("open_clip", "open_clip_config.json", {"model_cfg": {"text_cfg": {"heads": 1}}}, "quick_gelu is not set"),
        (
            *("open_clip", "open_clip_config.json", {"model_cfg": {"quick_gelu": True, "text_cfg": {"heads": 2}}}),
            "text_cfg.heads is 2 instead of 1",
        ),
    ],
)
def test_configurations_of_towers_that_compute_differently_raise(
    tmp_path: Path, style: Style, file: str, change: dict[str, object], message: str
) -> None:
    """The shapes of the weights do not show these differences."""
    folder = write(tmp_path / style, style)
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | change))
    with pytest.raises(ValueError, match=message):
        pipeline.load(folder)


def test_a_damaged_configuration_raises(tmp_path: Path) -> None:
    folder = write(tmp_path / "hf", "huggingface")
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: damaged"):
        pipeline.load(folder)


def test_transformers_opens_our_folder(tmp_path: Path) -> None:
    network, tokens = clip(), Tokenizer.released(600, 12)(["a cat", "two dogs here"])
    network.eval()
    peer = CLIPModel.from_pretrained(write(tmp_path / "hf", "huggingface"))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = network(images, tokens)[0]
        torch.testing.assert_close(peer(pixel_values=images, input_ids=tokens).logits_per_image, expected)


def test_open_clip_opens_our_folder(tmp_path: Path) -> None:
    network, tokens = clip(), Tokenizer.released(600, 12)(["a cat", "two dogs here"])
    network.eval()
    peer = open_clip.create_model(f"local-dir:{write(tmp_path / 'folder', 'open_clip')}").eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(peer.get_logits(images, tokens)[0], network(images, tokens)[0])


def test_configurations_equal_those_of_open_clip() -> None:
    """Compare a ResNet and a vision transformer of the table."""
    for name in ("RN50", "ViT-B/32"):
        with torch.device("meta"):
            ours = foreign_folders.open_clip_config(CLIP(MODELS[name]))["model_cfg"]
        theirs = open_clip.get_model_config(name.replace("/", "-") + "-quickgelu")
        ours["vision_cfg"].pop("head_width", None)
        assert ours == theirs


def test_importing_the_package_is_quick() -> None:
    code = "import sys, pipeline; sys.exit(bool({'torch', 'timm', 'open_clip'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
