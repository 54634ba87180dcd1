"""Load a model by name, or from its weights: our folders, folders of other tools, single files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.model.config import MODELS, model_config, nearest_names
from pipeline.model.objectives.clip import CLIP
from pipeline.model.tokenizer.tokenizer import Tokenizer
from pipeline.model.weights import model_folder
from pipeline.model.weights.convert import empty_clip, import_state, recognise_model
from pipeline.model.weights.foreign_folders import CONFIG_FILES, WEIGHTS_FILES, huggingface_config, open_clip_config
from pipeline.model.weights.model_folder import Model
from pipeline.model.weights.parameter_names import style_of
from pipeline.model.weights.weight_files import read_state


def load_model(name_or_path: str | Path, weights: str | Path | None = None) -> Model:
    """Load a trained model, or a model of the table with initial values; see `pipeline.load`."""
    name, path = str(name_or_path), Path(name_or_path)
    if weights is not None:
        model_config(name)
        return read_model(weights, name)
    if path.exists():
        return read_model(path)
    if name in MODELS:
        config = model_config(name)
        return Model(CLIP(config), Tokenizer.released(config.text.vocab_size, config.text.context_length))
    if nearest_names(name):
        model_config(name)  # raises, and suggests the similar names
    raise FileNotFoundError(
        f"no model at '{name}': it is neither a file, a folder nor the name of a model ({', '.join(MODELS)})"
    )


def read_model(source: str | Path, name: str | None = None) -> Model:
    """Read a model from a folder or a file; float32 on the CPU.

    A folder of this project contains its tokenizer. All other models get the released vocabulary.

    Args:
        source: a folder of this project, of open_clip or of transformers' CLIPModel, or a file for `read_state`.
        name: the model's name in the table; by default it is recognised from the weights.

    Raises:
        FileNotFoundError: the folder, the file or the weights in the folder do not exist.
        ValueError: a file is damaged or refused, or the weights are those of a different model.
    """
    path = Path(source)
    foreign_config = _foreign_config(path)
    if path.is_dir() and foreign_config is None:
        model = model_folder.load(path)
        if name is not None:
            _check_name(model, name, path)
        return model
    state = read_state(path if foreign_config is None else _weights_file(path))
    try:
        network = _network(state, name)
        if foreign_config is not None:
            _check_towers(network, foreign_config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    text = network.config.text
    return Model(network, Tokenizer.released(text.vocab_size, text.context_length))


def _network(state: dict[str, Tensor], name: str | None) -> CLIP:
    if style_of(set(state)) == "ours":
        raise ValueError("these weights are from this project; give their folder, which also contains the tokenizer")
    network = empty_clip(model_config(recognise_model(state) if name is None else name))
    import_state(network, state)
    return network


def _check_name(model: Model, name: str, path: Path) -> None:
    """Refuse a model that is not the named one. The size of its vocabulary may differ, as that is learned."""
    expected, config = model_config(name), model.network.config
    if replace(expected, text=replace(expected.text, vocab_size=config.text.vocab_size)) != config:
        raise ValueError(f"weights={path} are not those of the model '{name}'")


def _foreign_config(path: Path) -> dict[str, Any] | None:
    """The model configuration in another tool's folder; None for anything else."""
    for file in CONFIG_FILES:
        if (path / file).is_file():
            try:
                values = json.loads((path / file).read_bytes())
            except ValueError as error:
                raise ValueError(f"{path / file}: damaged ({error})") from error
            if isinstance(values, dict) and ("model_type" in values or "model_cfg" in values):
                return values
    return None


def _weights_file(folder: Path) -> Path:
    for name in WEIGHTS_FILES:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder} has no weights: it contains none of {', '.join(WEIGHTS_FILES)}")


def _check_towers(network: CLIP, foreign_config: dict[str, Any]) -> None:
    """Refuse a configuration whose towers compute differently, which the shapes of the weights do not show."""
    differences = []
    if "model_cfg" in foreign_config:
        theirs, ours = foreign_config["model_cfg"], open_clip_config(network)["model_cfg"]
        if not theirs.get("quick_gelu", False):
            differences.append("quick_gelu is not set, but the towers here have QuickGELU")
        heads, expected = theirs.get("text_cfg", {}).get("heads", 8), ours["text_cfg"]["heads"]
        if heads != expected:
            differences.append(f"text_cfg.heads is {heads} instead of {expected}")
    elif foreign_config.get("model_type") != "clip":
        differences.append(f"model_type is '{foreign_config.get('model_type')}' instead of 'clip'")
    else:
        ours = huggingface_config(network)
        differences += [
            f"{tower}.{field} is {value} instead of {ours[tower][field]}"
            for tower in ("text_config", "vision_config")
            for field in ("hidden_act", "num_attention_heads", "layer_norm_eps")
            if (value := (foreign_config.get(tower) or {}).get(field, ours[tower][field])) != ours[tower][field]
        ]
    if differences:
        raise ValueError(f"the folder's configuration does not fit its weights: {'; '.join(differences)}")
