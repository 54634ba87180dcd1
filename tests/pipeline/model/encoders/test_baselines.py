import io
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from torch import Tensor

import pipeline
from pipeline.model.encoders import baselines
from pipeline.model.encoders.baselines import BASELINES, RANDOM, load_baseline

RESNET = "resnet50.tv_in1k"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Replace the ResNets of the table by a small one, and hide earlier downloads."""
    monkeypatch.setattr(
        baselines, "BASELINES", {"ResNet": ("resnet18.tv_in1k",), "EfficientNet": BASELINES["EfficientNet"]}
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "torch"))


@pytest.fixture(scope="module")
def whole() -> torch.nn.Module:
    """A network of timm with its classifier and random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return timm.create_model("resnet18.tv_in1k", pretrained=False).eval()


@pytest.fixture(scope="module")
def weights(whole: torch.nn.Module) -> dict[str, Tensor]:
    return whole.state_dict()


def picture(mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def save(weights: dict[str, Tensor], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(weights, path)
    else:
        torch.save(weights, path)
    return path


def test_timm_has_weights_for_every_name() -> None:
    names = [name for family in BASELINES.values() for name in family]
    assert [name for name in names if not timm.is_model_pretrained(name)] == []
    assert len(names) == len({*names}) == 34
    assert RESNET in names


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt", "model.pth"])
def test_features_are_the_classifiers_input(
    name: str, whole: torch.nn.Module, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    model, preprocess = load_baseline("timm/resnet18", save(weights, tmp_path / name))
    images = torch.stack([preprocess(picture(mode)) for mode in ("RGB", "P", "LA", "CMYK")])
    assert images.shape == (4, 3, 224, 224)
    with torch.inference_mode():
        features = model.encode_image(images)
        torch.testing.assert_close(whole.get_submodule("fc")(features), whole(images))
    assert features.shape == (4, 512)


def test_preprocessing_follows_the_models_configuration(weights: dict[str, Tensor], tmp_path: Path) -> None:
    _, preprocess = load_baseline("timm/resnet18", save(weights, tmp_path / "model.pt"))
    grey = preprocess(Image.new("RGB", (300, 200), (124, 116, 104)))  # ImageNet's mean colour
    assert grey.abs().max() < 0.02


def test_weights_are_found_among_earlier_downloads(weights: dict[str, Tensor], tmp_path: Path) -> None:
    hub = tmp_path / "hub" / "models--timm--resnet18.tv_in1k"
    save(weights, hub / "snapshots" / "abc" / "model.safetensors")
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text("abc")
    from_hub = load_baseline("resnet18")[0].state_dict()
    hub.rename(tmp_path / "elsewhere")
    save(weights, tmp_path / "torch" / "checkpoints" / "resnet18-f37072fd.pth")
    from_torch = load_baseline("resnet18.tv_in1k")[0].state_dict()
    for name, value in from_hub.items():
        torch.testing.assert_close(value, weights[name.removeprefix("trunk.")])
        torch.testing.assert_close(value, from_torch[name])


def test_missing_weights_raise_with_instructions() -> None:
    with pytest.raises(
        FileNotFoundError, match=r"Download model.safetensors from https://huggingface.co/timm/resnet18.tv_in1k"
    ):
        load_baseline("resnet18")


def test_an_untrained_model_must_be_requested() -> None:
    model, preprocess, tokenize = pipeline.load("timm/resnet18", weights=RANDOM)
    assert model.encode_image(preprocess(picture()).unsqueeze(0)).shape == (1, 512)
    with pytest.raises(ValueError, match="timm/resnet18 encodes images only"):
        tokenize("a dog")


def test_files_may_lack_batch_counters_and_a_classifier(weights: dict[str, Tensor], tmp_path: Path) -> None:
    old = {
        name: value
        for name, value in weights.items()
        if not name.endswith("num_batches_tracked") and not name.startswith("fc.")
    }
    model, _ = load_baseline("resnet18", save(old, tmp_path / "old.pth"))
    assert all(torch.equal(model.state_dict()[f"trunk.{name}"], value) for name, value in old.items())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/resnet19", r"model=timm/resnet19 is not known; try timm/resnet18.tv_in1k"),
        ("timm/tf_efficientnet_b", "is not known; try timm/tf_efficientnet_b"),
        ("timm/0", "is not known; try timm/resnet18.tv_in1k, timm/tf_efficientnet_b0.aa_in1k"),
    ],
)
def test_unknown_names_raise(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline.load(name)


def test_an_ambiguous_name_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "BASELINES", BASELINES)
    with pytest.raises(ValueError, match=r"is ambiguous; try timm/tf_efficientnet_b0.aa_in1k, timm/tf_eff.*ns_"):
        load_baseline("tf_efficientnet_b0")


def test_weights_that_do_not_fit_are_listed(weights: dict[str, Tensor], tmp_path: Path) -> None:
    wrong = {name: value for name, value in weights.items() if not name.startswith("layer4.")}
    wrong |= {"extra": torch.zeros(1), "conv1.weight": torch.zeros(64, 3, 5, 5)}
    with pytest.raises(
        ValueError, match=r"25 missing \(layer4.0.bn1.bias, .*, \.\.\.\); 1 unexpected \(extra\); 1 missh"
    ):
        load_baseline("resnet18", save(wrong, tmp_path / "wrong.safetensors"))


class Trap:
    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("sprung"),)


def test_files_that_are_not_weights_raise(
    weights: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    half = save(weights, tmp_path / "half.safetensors")
    half.write_bytes(half.read_bytes()[:-1_000])
    sink = io.BytesIO()
    torch.save({"conv1.weight": Trap()}, sink)
    Path("trap.pt").write_bytes(sink.getvalue())
    Path("text.pt").write_text("not found")
    Path("empty.pt").touch()
    for name in ("half.safetensors", "trap.pt", "text.pt", "empty.pt"):
        with pytest.raises(ValueError, match=f"weights={name}: damaged, or not only plain tensors"):
            load_baseline("resnet18", name)
    assert not Path("sprung").exists()
    with pytest.raises(FileNotFoundError, match=r"weights=gone\.pt: the file does not exist"):
        load_baseline("resnet18", "gone.pt")
