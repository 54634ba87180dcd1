import json

import pytest

from pipeline.model.config import MODELS, ModelConfig, model_config


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_model_of_the_table_survives_json(name: str) -> None:
    config = model_config(name)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_unknown_model_names_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"model=huge is not known; choose one of .*tiny"):
        model_config("huge")


@pytest.mark.parametrize("damage", [{"embed_dim": None}, {"image": {"size": 3}}])
def test_damaged_configuration(damage: dict[str, object]) -> None:
    values = {key: value for key, value in (model_config("tiny").to_dict() | damage).items() if value is not None}
    with pytest.raises(ValueError, match="not the configuration of a model"):
        ModelConfig.from_dict(values)
