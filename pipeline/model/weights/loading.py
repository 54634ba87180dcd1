"""A model by its name, or from wherever its weights lie: folders of ours and of others, single files."""

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
from pipeline.model.weights.convert import empty_clip, import_state, recognise
from pipeline.model.weights.foreign_folders import CONFIG_FILES, WEIGHTS_FILES, huggingface_config, open_clip_config
from pipeline.model.weights.model_folder import Model
from pipeline.model.weights.parameter_names import style_of
from pipeline.model.weights.weight_files import read_state


def load_model(name_or_path: str | Path, weights: str | Path | None = None) -> Model:
    """A model of the table with initial values, or a trained one; see `pipeline.load`."""
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
        model_config(name)  # says which
    raise FileNotFoundError(
        f"no model at '{name}': there is no such file or folder, and no model of that name ({', '.join(MODELS)})"
    )


def read_model(place: str | Path, name: str | None = None) -> Model:
    """The model whose weights are in a folder or a file; float32 on the CPU.

    A folder of ours has its tokenizer with it; all others are read with the released vocabulary.

    Args:
        place: a folder of ours, of open_clip or of transformers' CLIPModel, or a file that `read_state` reads.
        name: the model's name in the table; unset: it is told from the weights.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: a file is damaged or refused, or the weights are those of another model.
    """
    path = Path(place)
    described = _described(path)
    if path.is_dir() and described is None:
        model = model_folder.load(path)
        if name is not None:
            _refuse_another(model, name, path)
        return model
    state = read_state(path if described is None else _weights_file(path))
    try:
        network = _network(state, name)
        if described is not None:
            _refuse_other_towers(network, described)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    text = network.config.text
    return Model(network, Tokenizer.released(text.vocab_size, text.context_length))


def _network(state: dict[str, Tensor], name: str | None) -> CLIP:
    if style_of(set(state)) == "ours":
        raise ValueError("these weights are of this project; give the folder they are in, which has the tokenizer")
    network = empty_clip(model_config(recognise(state) if name is None else name))
    import_state(network, state)
    return network


def _refuse_another(model: Model, name: str, path: Path) -> None:
    """The vocabulary may be another one: it is the model's own."""
    wanted, config = model_config(name), model.network.config
    if replace(wanted, text=replace(wanted.text, vocab_size=config.text.vocab_size)) != config:
        raise ValueError(f"weights={path} are not those of the model '{name}'")


def _described(path: Path) -> dict[str, Any] | None:
    """What another tool's folder says of its model; None for anything else."""
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
    raise FileNotFoundError(f"{folder} has no weights: none of {', '.join(WEIGHTS_FILES)} is there")


def _refuse_other_towers(network: CLIP, described: dict[str, Any]) -> None:
    """What the shapes of weights do not tell: how a tower computes with them."""
    differences = []
    if "model_cfg" in described:
        theirs, ours = described["model_cfg"], open_clip_config(network)["model_cfg"]
        if not theirs.get("quick_gelu", False):
            differences.append("quick_gelu is not set, and the towers here have QuickGELU")
        heads, wanted = theirs.get("text_cfg", {}).get("heads", 8), ours["text_cfg"]["heads"]
        if heads != wanted:
            differences.append(f"text_cfg.heads is {heads} instead of {wanted}")
    elif described.get("model_type") != "clip":
        differences.append(f"model_type is '{described.get('model_type')}' instead of 'clip'")
    else:
        ours = huggingface_config(network)
        differences += [
            f"{tower}.{field} is {found} instead of {ours[tower][field]}"
            for tower in ("text_config", "vision_config")
            for field in ("hidden_act", "num_attention_heads", "layer_norm_eps")
            if (found := (described.get(tower) or {}).get(field, ours[tower][field])) != ours[tower][field]
        ]
    if differences:
        raise ValueError(f"the folder's configuration is that of another network: {'; '.join(differences)}")
