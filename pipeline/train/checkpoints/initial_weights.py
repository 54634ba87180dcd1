"""Read the weights that a run starts from instead of random values: a model of another run, or a foreign one.

The paper's last model is made this way: ViT-L/14, trained for one more epoch at 336 pixels (section 2.5). The
weights may differ from the configured model in two things: the resolution, for which the positions of an image tower
are interpolated, and the vocabulary, which comes with the weights.
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


def read_start(location: str, config: ModelConfig, storage: Storage) -> tuple[Model, str]:
    """Read the model to start from and fit it to the sizes of `config`. Returns it with the SHA-256 of its files.

    Args:
        location: a folder of jobs.pretrain, local or at a URI; or a local folder or file of a foreign model
            (loading.py).
        config: the model to train; its vocabulary size is ignored.
        storage: where URIs are read.

    Raises:
        FileNotFoundError: there is no model at the location.
        ValueError: a file is damaged, or the weights belong to a different network.
    """
    try:
        model = _read(location, storage)
        digest = hashlib.sha256()
        for data in model_folder.to_files(model).values():
            digest.update(data)
        return _fit(model, config), digest.hexdigest()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"start_from={location}: {error}") from error
    except ValueError as error:
        raise ValueError(f"start_from={location}: {error}") from error


def read_folder(folder: str, storage: Storage) -> Model:
    """Read a model in this program's own format from a folder or URI. Raises as `model_folder.from_files`."""
    uris = {name: storage.join(folder, name) for name in model_folder.MODEL_FILES}
    return model_folder.from_files(
        {name: storage.read_bytes(uri) for name, uri in uris.items() if storage.exists(uri)}, folder
    )


def _read(location: str, storage: Storage) -> Model:
    path = Path(location.removeprefix("file://"))
    if path.exists():
        return read_model(path)
    if location in MODELS:
        raise FileNotFoundError("this is the name of a model; give the folder or the file of its weights")
    return read_folder(location, storage)


def _fit(model: Model, config: ModelConfig) -> Model:
    """Load the same weights into a network of another configuration, on the CPU."""
    actual, expected = _fixed_settings(model.network.config), _fixed_settings(config)
    different = [key for key in expected if actual.get(key) != expected[key]]
    if different:
        details = "; ".join(
            f"{key} is {actual.get(key)} in the weights, {expected[key]} in the model" for key in different
        )
        raise ValueError(f"the weights are not those of the configured model: {details}")
    vocab_size = model.network.config.text.vocab_size
    network = empty_network(replace(config, text=replace(config.text, vocab_size=vocab_size)))
    import_state(network, model.network.state_dict())
    return Model(network, model.tokenizer)


def _fixed_settings(config: ModelConfig) -> dict[str, Any]:
    """The settings that must equal those of the weights: all but resolution and vocabulary size.

    timm puts the resolution at the end of an architecture's name, and takes it as the option img_size as well.
    """
    image = asdict(config.image)
    size = image.pop("image_size")
    image["architecture"] = config.image.architecture.removesuffix(f"_{size}")
    image["options"] = {name: value for name, value in config.image.options.items() if name != "img_size"}
    text = asdict(config.text)
    del text["vocab_size"]
    towers = {"image": image, "text": text}
    sizes = {f"{tower}.{name}": value for tower, values in towers.items() for name, value in values.items()}
    return {"embed_dim": config.embed_dim, "objective": config.objective, **sizes}
