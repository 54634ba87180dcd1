"""Compare forward passes with open_clip and Hugging Face: the same weights at full size, one process per model.

    python -m tests.pipeline.model.parity ViT-B/32 RN50x64 ...

Prints one line of JSON per name, with the differences relative to the peer's largest value, and the CPU seconds.
"""

import json
import math
import multiprocessing
import sys
import time
from collections.abc import Iterable
from typing import Any

import open_clip
import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from pipeline.model.config import model_config
from pipeline.model.objectives.clip import CLIP
from pipeline.model.towers.text_tower import TextTower
from pipeline.model.weights.convert import empty_clip, export_state, import_state
from pipeline.model.weights.foreign_folders import huggingface_config

PATTERN_LENGTH = 999_983
"""A prime, so that all rows of a matrix differ."""


def fill(model: nn.Module) -> None:
    """Fill a model on the meta device with cheap pseudo-random values, scaled to keep activations near one."""
    model.to_empty(device="cpu")
    pattern = torch.randn(PATTERN_LENGTH, generator=torch.Generator().manual_seed(0))
    offset = 0
    for name, tensor in model.state_dict().items():
        if tensor.ndim == 0:
            tensor.fill_(0 if name.endswith("tracked") else math.log(30))
            continue
        scale = 1 / math.sqrt(math.prod(tensor.shape[1:])) if tensor.ndim > 1 else 0.1
        flat = tensor.view(-1)
        for start in range(0, flat.numel(), PATTERN_LENGTH):
            part = flat[start : start + PATTERN_LENGTH]
            torch.mul(pattern.roll(offset)[: len(part)], scale, out=part)
        offset += 7919
        if "running_var" in name or (tensor.ndim == 1 and name.endswith("weight")):
            tensor.abs_().add_(1 if "running_var" in name else 0.5)


def inputs(model: CLIP) -> tuple[Tensor, Tensor]:
    """An image, and a caption shorter than the context length."""
    generator = torch.Generator().manual_seed(1)
    text, size = model.config.text, model.config.image.image_size
    tokens = torch.zeros(1, text.context_length, dtype=torch.int64)
    tokens[0, :20] = torch.randint(0, text.vocab_size - 2, (20,), generator=generator)
    tokens[0, 0], tokens[0, 19] = text.vocab_size - 2, text.vocab_size - 1
    return torch.randn(1, 3, size, size, generator=generator), tokens


def align_texts(text: TextTower, image: Tensor) -> None:
    """Align the text features with the image, as training does. A cosine near zero would consist of rounding errors."""
    embed_dim, width = text.projection.weight.shape
    text.final_norm.bias.add_(1)
    text.projection.weight.add_(math.sqrt(embed_dim) / width * nn.functional.normalize(image).T)


def compare(name: str) -> dict[str, object]:
    began = time.process_time()
    model = empty_clip(model_config(name)).eval()
    fill(model)
    images, tokens = inputs(model)
    image = model.encode_image(images)
    assert isinstance(model.text_tower, TextTower)
    align_texts(model.text_tower, image)
    ours = outputs(image, model.encode_text(tokens), model.logit_scale)

    theirs = open_clip_model(name, export_state(model, "open_clip"))
    peer = outputs(theirs.encode_image(images), theirs.encode_text(tokens), theirs.logit_scale)
    result: dict[str, object] = {"name": name, "open_clip": differences(ours, peer)}
    towers = model.image_tower, model.text_tower
    result["millions"] = [sum(weight.numel() for weight in tower.parameters()) / 1e6 for tower in towers]
    returned = empty_clip(model_config(name))
    import_state(returned, theirs.state_dict())
    result["returned"] = same(model, returned)
    del theirs, returned

    if name.startswith("ViT"):
        hugging: Any = CLIPModel.from_pretrained(
            None, config=CLIPConfig(**huggingface_config(model)), state_dict=export_state(model, "huggingface")
        )
        hugging.eval()
        output = hugging(pixel_values=images, input_ids=tokens)
        peer = {"image": output.image_embeds, "text": output.text_embeds, "logits": output.logits_per_image}
        normalised = {key: nn.functional.normalize(value, dim=-1) for key, value in ours.items() if key != "logits"}
        result["huggingface"] = differences(normalised | {"logits": ours["logits"]}, peer)
        returned = empty_clip(model_config(name))
        import_state(returned, hugging.state_dict())
        result["returned"] = result["returned"] and same(model, returned)
    return result | {"seconds": round(time.process_time() - began, 1)}


def outputs(image: Tensor, text: Tensor, logit_scale: Tensor) -> dict[str, Tensor]:
    directions = nn.functional.normalize(image, dim=-1), nn.functional.normalize(text, dim=-1)
    return {"image": image, "text": text, "logits": logit_scale.exp() * directions[0] @ directions[1].T}


def differences(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, float]:
    assert ours.keys() == theirs.keys()
    return {key: float((ours[key] - value).abs().max() / value.abs().max()) for key, value in theirs.items()}


def same(one: nn.Module, other: nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.equal(states[1][key], states[0][key]) for key in states[0]
    )


def open_clip_model(name: str, state: dict[str, Tensor]) -> Any:
    """The model of open_clip with these weights, which are not copied."""
    config = open_clip.get_model_config(name.replace("/", "-").replace("@336px", "-336") + "-quickgelu")
    with torch.device("meta"):
        model = open_clip.CLIP(**config)
    model.load_state_dict(state, assign=True)
    length = model.context_length
    model.attn_mask = torch.full((length, length), -math.inf).triu(1)  # a buffer that is not in the state
    return model.eval()


@torch.no_grad()
def report(name: str) -> None:
    print(json.dumps(compare(name)), flush=True)


def main(names: Iterable[str]) -> None:
    for name in names:
        child = multiprocessing.get_context("fork").Process(target=report, args=(name,))
        child.start()  # a fork has its own memory, but all modules are already imported
        child.join()
        if child.exitcode != 0:
            sys.exit(f"{name}: failed")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
