import json
import re

import pytest

from pipeline import paper
from pipeline.model.config import MODELS, PAPER_ARCHITECTURES, ModelConfig, model_config
from pipeline.model.weights.convert import empty_clip


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_configuration_survives_json(name: str) -> None:
    config = model_config(name)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_an_unknown_model_lists_all_models() -> None:
    with pytest.raises(ValueError, match=r"model=huge is not known; choose one of .*tiny"):
        model_config("huge")


@pytest.mark.parametrize(
    ("name", "similar"),
    [
        ("vit-b32", "ViT-B/32"),
        ("ViT-B-16", "ViT-B/16"),
        ("ViT-L/14@336", "ViT-L/14@336px or ViT-L/14"),
        ("rn50X4", "RN50x4 or "),
        ("smal", "small"),
    ],
)
def test_an_unknown_model_suggests_similar_names(name: str, similar: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"model={name} is not known; did you mean {similar}")):
        model_config(name)


def test_the_table_has_all_models_of_the_paper() -> None:
    assert {name for name in MODELS if name[0].isupper()} == set(paper.MODEL_SIZES) == set(PAPER_ARCHITECTURES)


def test_the_small_model_has_the_described_layers() -> None:
    model = empty_clip(model_config("small"))
    layers = [
        {name.split(".")[1] for name in tower.state_dict() if ".attn.qkv" in name or "attention_in" in name}
        for tower in (model.image_tower.trunk, model.text_tower)
    ]
    assert [len(names) for names in layers] == [8, 8]
    assert model.text_tower.token_embedding.embedding_dim == 256
    assert model.image_tower.trunk.get_parameter("patch_embed.proj.weight").shape == (256, 3, 16, 16)
    assert model.image_tower.trunk.get_parameter("pos_embed").shape == (1, 1 + (128 // 16) ** 2, 256)


@pytest.mark.parametrize(
    "damage",
    [
        *({"embed_dim": None}, {"image": {"size": 3}}, {"more": 1}, {"text": "a"}, {"image": [1]}),
        *({"embed_dim": size} for size in (-5, 0, "64", 64.5, True, [64], 1e400)),
        {"text": {"width": 64, "heads": 0, "layers": 1}},
        {"image": {"architecture": "resnet50_clip", "image_size": "224"}},
    ],
)
def test_an_invalid_configuration_raises(damage: dict[str, object]) -> None:
    values = {key: value for key, value in (model_config("tiny").to_dict() | damage).items() if value is not None}
    with pytest.raises(ValueError, match="not a valid model configuration"):
        ModelConfig.from_dict(values)


@pytest.mark.parametrize("values", [[], 5, None, "tiny"])
def test_a_configuration_that_is_no_object_raises(values: object) -> None:
    with pytest.raises(ValueError, match="not a valid model configuration"):
        ModelConfig.from_dict(values)  # type: ignore[arg-type]
