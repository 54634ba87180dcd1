"""Weights that a run starts from instead of chance: another run's model, or one of others.

The paper's last model is made so: ViT-L/14, trained for one more epoch at 336 pixels (section 2.5). What may differ is
the resolution, for which an image tower's positions are interpolated, and the vocabulary, which comes with the weights.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pipeline.model.config import MODELS, ModelConfig
from pipeline.model.objectives.networks import empty_network
from pipeline.model.weights import model_folder
from pipeline.model.weights.convert import import_state
from pipeline.model.weights.loading import read_model
from pipeline.model.weights.model_folder import Model
from pipeline.train.checkpoints.storage_protocol import Storage


def read_start(place: str, config: ModelConfig, files: Storage) -> tuple[Model, str]:
    """The model to start from, with the sizes of `config`, and the SHA-256 of what was read.

    Args:
        place: a folder of jobs.pretrain, local or at a URI; or a local folder or file of others (loading.py).
        config: what is to be trained; its vocabulary counts for nothing.
        files: where URIs are.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: a file is damaged, or the weights are those of another network.
    """
    try:
        model = _read(place, files)
        digest = hashlib.sha256()
        for data in model_folder.to_files(model).values():
            digest.update(data)
        return _fit(model, config), digest.hexdigest()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"start_from={place}: {error}") from error
    except ValueError as error:
        raise ValueError(f"start_from={place}: {error}") from error


def read_folder(folder: str, files: Storage) -> Model:
    """The model in a folder of ours, local or at a URI. Raises as `model_folder.from_files`."""
    places = {name: files.join(folder, name) for name in model_folder.MODEL_FILES}
    return model_folder.from_files(
        {name: files.read_bytes(place) for name, place in places.items() if files.exists(place)}, folder
    )


def _read(place: str, files: Storage) -> Model:
    local = Path(place.removeprefix("file://"))
    if local.exists():
        return read_model(local)
    if place in MODELS:
        raise FileNotFoundError("a model's name, which says no weights; give the folder or the file that has them")
    return read_folder(place, files)


def _fit(model: Model, config: ModelConfig) -> Model:
    """The same weights in a network of that configuration, on the CPU."""
    found, wanted = _computes(model.network.config), _computes(config)
    different = [key for key in wanted if found.get(key) != wanted[key]]
    if different:
        told = "; ".join(f"{key} is {found.get(key)} there and {wanted[key]} here" for key in different)
        raise ValueError(f"the weights are those of another network than the model's: {told}")
    vocab_size = model.network.config.text.vocab_size
    network = empty_network(replace(config, text=replace(config.text, vocab_size=vocab_size)))
    import_state(network, model.network.state_dict())
    return Model(network, model.tokenizer)


def _computes(config: ModelConfig) -> dict[str, Any]:
    """What a network computes with its weights, whatever the resolution and the vocabulary; timm ends the names of its
    architectures with the resolution, and takes it as an option."""
    image = asdict(config.image)
    size = image.pop("image_size")
    image["architecture"] = config.image.architecture.removesuffix(f"_{size}")
    image["options"] = {name: value for name, value in config.image.options.items() if name != "img_size"}
    text = asdict(config.text)
    del text["vocab_size"]
    towers = {"image": image, "text": text}
    sizes = {f"{tower}.{name}": value for tower, values in towers.items() for name, value in values.items()}
    return {"embed_dim": config.embed_dim, "objective": config.objective, **sizes}
