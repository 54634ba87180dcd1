"""The nine recipes in jobs/configs against the paper's tables."""

import dataclasses
import signal
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from jobs.options.launch import launch
from jobs.pretrain import PretrainJob
from pipeline import paper
from pipeline.model.config import model_config

FOLDER = Path(__file__).resolve().parents[3] / "jobs" / "configs"


class Recipe(NamedTuple):
    model: str
    learning_rate: float
    beta2: float
    epsilon: float
    epochs: int
    embed_dim: int
    pixels: int


# Copied by hand from tables 18 to 20, independently of pipeline/paper.py
RECIPES = {
    "rn50": Recipe("RN50", 5e-4, 0.999, 1e-8, 32, 1024, 224),
    "rn101": Recipe("RN101", 5e-4, 0.999, 1e-8, 32, 512, 224),
    "rn50x4": Recipe("RN50x4", 5e-4, 0.999, 1e-8, 32, 640, 288),
    "rn50x16": Recipe("RN50x16", 4e-4, 0.999, 1e-8, 32, 768, 384),
    "rn50x64": Recipe("RN50x64", 3.6e-4, 0.999, 1e-8, 32, 1024, 448),
    "vit_b32": Recipe("ViT-B/32", 5e-4, 0.98, 1e-6, 32, 512, 224),
    "vit_b16": Recipe("ViT-B/16", 5e-4, 0.98, 1e-6, 32, 512, 224),
    "vit_l14": Recipe("ViT-L/14", 4e-4, 0.98, 1e-6, 32, 768, 224),
    "vit_l14_336px": Recipe("ViT-L/14@336px", 2e-5, 0.98, 1e-6, 1, 768, 336),
}


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> PretrainJob:
    """The job that the file of a recipe configures."""
    jobs: list[PretrainJob] = []
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    arguments = [f"--config={FOLDER / request.param}.toml", "--snapshot=set", f"--output={tmp_path}"]
    launch(PretrainJob, lambda job: jobs.append(job), arguments)
    return jobs[0]


@pytest.mark.parametrize(("launched", "recipe"), RECIPES.items(), indirect=["launched"], ids=RECIPES)
def test_a_recipe_has_the_papers_values(launched: PretrainJob, recipe: Recipe) -> None:
    train, model = launched.train, model_config(launched.model)
    assert launched.objective == "contrastive"
    found = Recipe(
        launched.model, train.learning_rate, train.beta2, train.epsilon, train.epochs, model.embed_dim,
        model.image.image_size,
    )  # fmt: skip
    assert found == recipe
    shared = (train.global_batch_size, train.warmup_steps, train.weight_decay, train.beta1)
    assert shared == (32768, 2000, 0.2, 0.9)
    assert train.learning_rate == paper.LEARNING_RATES[launched.model].value
    assert launched.start_from == ("runs/vit_l14/model" if recipe.epochs == 1 else None)


@pytest.mark.parametrize(("launched", "recipe"), RECIPES.items(), indirect=["launched"], ids=RECIPES)
def test_a_recipes_batch_can_be_divided_among_its_gpus(launched: PretrainJob, recipe: Recipe) -> None:
    """All GPUs get the same number of samples, in whole batch-norm groups."""
    train = launched.train
    assert train.gpus_per_worker == 1
    unit = train.norm_group_size if recipe.model.startswith("RN") else 1
    assert set(train.local_batch_sizes(train.num_workers, unit)) == {32768 // train.num_workers}


def test_each_model_of_the_paper_has_a_recipe() -> None:
    assert {path.stem for path in FOLDER.glob("*.toml")} == {*RECIPES, "tiny"}
    assert {recipe.model for recipe in RECIPES.values()} == set(paper.MODEL_SIZES) == set(paper.LEARNING_RATES)


@pytest.mark.parametrize("name", [*RECIPES, "tiny"])
def test_a_file_sets_only_options_that_differ_from_the_defaults(name: str) -> None:
    def same(values: dict[str, Any], config_class: Any) -> list[str]:
        fields = {field.name: field for field in dataclasses.fields(config_class)}
        return [key for key, value in values.items() if not isinstance(value, dict) and fields[key].default == value]

    values = tomllib.loads((FOLDER / f"{name}.toml").read_text())
    assert same(values, PretrainJob) == (["model"] if name == "tiny" else [])
    assert same(values["train"], PretrainJob.__dataclass_fields__["train"].default_factory) == []
