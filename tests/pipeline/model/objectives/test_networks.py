import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import pipeline
from pipeline.model.config import OBJECTIVES, ModelConfig, Objective
from pipeline.model.objectives.networks import network_for
from pipeline.model.tokenizer.tokenizer import Tokenizer
from pipeline.model.weights import model_folder
from pipeline.model.weights.model_folder import Model
from tests.pipeline.model.models import CONFIG, small_clip


def model_of(objective: Objective) -> Model:
    tokenizer = Tokenizer.train(["a red card"], CONFIG.text.vocab_size, CONFIG.text.context_length)
    text = replace(CONFIG.text, vocab_size=tokenizer.vocab_size)
    torch.manual_seed(0)
    return Model(network_for(replace(CONFIG, objective=objective, text=text)).eval(), tokenizer)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_network_survives_its_folder(objective: Objective, tmp_path: Path) -> None:
    model = model_of(objective)
    model_folder.save(model, tmp_path)
    again = model_folder.load(tmp_path).network
    assert type(again) is type(model.network)
    assert again.config == model.network.config
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.network.state_dict().items())


def test_the_image_tower_is_the_same_for_all() -> None:
    shapes = [
        {name: p.shape for name, p in model_of(objective).network.image_tower.named_parameters()}
        for objective in OBJECTIVES
    ]
    assert all(own == shapes[0] for own in shapes)


def test_a_clip_is_what_it_was_before_there_were_others() -> None:
    """Folders and runs are told apart by what `to_dict` gives, so a CLIP's must not change."""
    assert "objective" not in CONFIG.to_dict()
    assert ModelConfig.from_dict(CONFIG.to_dict()) == CONFIG
    other = replace(CONFIG, objective="bag")
    assert ModelConfig.from_dict(json.loads(json.dumps(other.to_dict()))) == other
    assert small_clip().state_dict().keys() == network_for(CONFIG).state_dict().keys()


def test_an_unknown_objective_is_refused() -> None:
    with pytest.raises(ValueError, match="the objective 'guess' is not one of contrastive, contrastive-bag, bag, cap"):
        ModelConfig.from_dict(CONFIG.to_dict() | {"objective": "guess"})


def test_load_gives_clips_only(tmp_path: Path) -> None:
    for objective in ("contrastive-bag", "caption"):
        model_folder.save(model_of(objective), tmp_path / objective)
    network, _, tokenize = pipeline.load(tmp_path / "contrastive-bag")
    assert network.encode_text(tokenize("a red card")).shape == (1, CONFIG.embed_dim)
    with pytest.raises(ValueError, match="was trained with the objective caption: it is no CLIP"):
        pipeline.load(tmp_path / "caption")
