"""Save and load a model as a folder of three files: model.safetensors, config.json and tokenizer.json."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError

from pipeline.model.config import ModelConfig
from pipeline.model.objectives.networks import Network, empty_network
from pipeline.model.tokenizer.tokenizer import Tokenizer

WEIGHTS_FILE, CONFIG_FILE, TOKENIZER_FILE = "model.safetensors", "config.json", "tokenizer.json"
MODEL_FILES = (WEIGHTS_FILE, CONFIG_FILE, TOKENIZER_FILE)


@dataclass(frozen=True)
class Model:
    """A network and the tokenizer that it was trained with."""

    network: Network
    tokenizer: Tokenizer


def to_files(model: Model) -> dict[str, bytes]:
    """The content of a model's files, by name."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.network.state_dict().items()}
    return {
        WEIGHTS_FILE: safetensors.torch.save(weights),
        CONFIG_FILE: json.dumps(model.network.config.to_dict(), indent=1).encode(),
        TOKENIZER_FILE: model.tokenizer.to_json().encode(),
    }


def from_files(files: Mapping[str, bytes], source: str) -> Model:
    """The model that `to_files` wrote, on the CPU. Half-precision weights are converted to float32.

    Args:
        files: content by name.
        source: where the files come from, for messages.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or the files belong to different models.
    """
    missing = [name for name in MODEL_FILES if name not in files]
    if missing:
        raise FileNotFoundError(f"{source} is not a model: it lacks {', '.join(missing)}")
    try:
        config = ModelConfig.from_dict(json.loads(files[CONFIG_FILE]))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source}/{CONFIG_FILE}: {error}") from error
    try:
        weights = safetensors.torch.load(files[WEIGHTS_FILE])
    except SafetensorError as error:
        raise ValueError(f"{source}/{WEIGHTS_FILE}: damaged ({error})") from error
    weights = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    network = empty_network(config)
    try:
        network.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{source}/{WEIGHTS_FILE} does not fit {CONFIG_FILE}: {error}") from error
    try:
        tokenizer = Tokenizer.from_json(files[TOKENIZER_FILE].decode(), config.text.context_length)
    except ValueError as error:
        raise ValueError(f"{source}/{TOKENIZER_FILE}: {error}") from error
    if tokenizer.vocab_size != config.text.vocab_size:
        raise ValueError(
            f"{source}/{TOKENIZER_FILE} has {tokenizer.vocab_size} entries, but the model has {config.text.vocab_size}"
        )
    return Model(network, tokenizer)


def save(model: Model, folder: str | Path) -> None:
    """Write a model into a local folder. Creates the folder."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    for name, data in to_files(model).items():
        (path / name).write_bytes(data)


def load(folder: str | Path) -> Model:
    """Read a model from a local folder.

    Raises:
        FileNotFoundError: the folder or one of its files does not exist.
        ValueError: a file is damaged, or the files belong to different models.
    """
    path = Path(folder)
    if not path.is_dir():
        raise FileNotFoundError(f"no model at '{folder}': the folder does not exist")
    existing = [name for name in MODEL_FILES if (path / name).exists()]
    return from_files({name: (path / name).read_bytes() for name in existing}, str(folder))
