import json
import re

import pytest

from pipeline import paper
from pipeline.model.config import MODELS, PAPER_ARCHITECTURES, ModelConfig, model_config
from pipeline.model.weights.convert import empty_clip


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_model_of_the_table_survives_json(name: str) -> None:
    config = model_config(name)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_unknown_model_names_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"model=huge is not known; choose one of .*tiny"):
        model_config("huge")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("vit-b32", "ViT-B/32"),
        ("ViT-B-16", "ViT-B/16"),
        ("ViT-L/14@336", "ViT-L/14@336px or ViT-L/14"),
        ("rn50X4", "RN50x4 or "),
        ("smal", "small"),
    ],
)
def test_unknown_model_names_the_nearest(name: str, near: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"model={name} is not known; did you mean {near}")):
        model_config(name)


def test_the_papers_models_are_there() -> None:
    assert {name for name in MODELS if name[0].isupper()} == set(paper.MODEL_SIZES) == set(PAPER_ARCHITECTURES)


def test_the_laptops_models_are_as_described() -> None:
    model = empty_clip(model_config("small"))
    layers = [
        {name.split(".")[1] for name in tower.state_dict() if ".attn.qkv" in name or "attention_in" in name}
        for tower in (model.image_tower.trunk, model.text_tower)
    ]
    assert [len(names) for names in layers] == [8, 8]
    assert model.text_tower.token_embedding.embedding_dim == 256
    assert model.image_tower.trunk.get_parameter("patch_embed.proj.weight").shape == (256, 3, 16, 16)
    assert model.image_tower.trunk.get_parameter("pos_embed").shape == (1, 1 + (128 // 16) ** 2, 256)


@pytest.mark.parametrize("damage", [{"embed_dim": None}, {"image": {"size": 3}}])
def test_damaged_configuration(damage: dict[str, object]) -> None:
    values = {key: value for key, value in (model_config("tiny").to_dict() | damage).items() if value is not None}
    with pytest.raises(ValueError, match="not the configuration of a model"):
        ModelConfig.from_dict(values)
