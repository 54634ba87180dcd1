import re

import open_clip
import pytest
import torch
from torch import Tensor

from pipeline.model.config import MODELS, ImageTowerConfig, ModelConfig, TextTowerConfig, model_config
from pipeline.model.objectives.clip import CLIP
from pipeline.model.weights.convert import empty_clip, export_state, import_state, recognise_model
from pipeline.model.weights.parameter_names import Style, style_of
from tests.pipeline.model.models import CONFIG, small_clip

TRANSFORMER = ModelConfig(
    embed_dim=48,
    image=ImageTowerConfig(
        architecture="vit_base_patch16_clip_quickgelu_224",
        image_size=64,
        options={"img_size": 64, "embed_dim": 128, "depth": 2, "num_heads": 2},
    ),
    text=TextTowerConfig(width=64, heads=1, layers=2, context_length=12, vocab_size=600),
)
FOREIGN: tuple[Style, ...] = ("openai", "open_clip", "huggingface")
POSITIONS = {
    "ours": "image_tower.trunk.pos_embed",
    "openai": "visual.positional_embedding",
    "open_clip": "visual.positional_embedding",
    "huggingface": "vision_model.embeddings.position_embedding.weight",
}


def clip(seed: int = 0) -> CLIP:
    torch.manual_seed(seed)
    return CLIP(TRANSFORMER)


def equal(one: CLIP, other: CLIP) -> bool:
    states = one.state_dict(), other.state_dict()
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("style", ["ours", *FOREIGN])
def test_exported_weights_can_be_imported(style: Style) -> None:
    model, other = clip(0), clip(1)
    state = export_state(model, style)
    assert style_of(set(state)) == style
    assert not any(tensor.requires_grad for tensor in state.values())
    import_state(other, state)
    assert equal(model, other)
    assert all(weight.requires_grad for weight in other.parameters())


@pytest.mark.parametrize("style", ["ours", *FOREIGN])
def test_importing_into_a_model_on_the_meta_device(style: Style) -> None:
    model, empty = clip(), empty_clip(TRANSFORMER)
    assert all(tensor.is_meta for tensor in empty.state_dict().values())
    import_state(empty, export_state(model, style))
    assert equal(model, empty)
    assert all(weight.requires_grad for weight in empty.parameters())


@pytest.mark.parametrize("name", ["RN50", "ViT-B/32"])
def test_names_and_shapes_equal_those_of_open_clip(name: str) -> None:
    with torch.device("meta"):
        theirs = open_clip.CLIP(**open_clip.get_model_config(name.replace("/", "-") + "-quickgelu")).state_dict()
    ours = export_state(empty_clip(model_config(name)), "open_clip")
    assert {key: tensor.shape for key, tensor in ours.items()} == {key: tensor.shape for key, tensor in theirs.items()}


def test_openais_style_has_three_numbers_beside_the_weights() -> None:
    state = export_state(clip(), "openai")
    assert [int(state[key]) for key in ("input_resolution", "context_length", "vocab_size")] == [64, 12, 600]
    assert set(state) - set(export_state(clip(), "open_clip")) == {"input_resolution", "context_length", "vocab_size"}


@pytest.mark.parametrize(
    ("style", "extra"),
    [
        ("openai", "transformer.resblocks.0.attn_mask"),
        ("open_clip", "attn_mask"),
        ("huggingface", "text_model.embeddings.position_ids"),
        ("huggingface", "vision_model.embeddings.position_ids"),
    ],
)
def test_entries_that_are_not_weights_are_ignored(style: Style, extra: str) -> None:
    model, other = clip(0), clip(1)
    import_state(other, export_state(model, style) | {extra: torch.zeros(12, 12)})
    assert equal(model, other)


def test_half_precision_becomes_float32() -> None:
    model, other = clip(0), empty_clip(TRANSFORMER)
    import_state(other, {name: tensor.half() for name, tensor in export_state(model, "open_clip").items()})
    for imported, original in zip(other.parameters(), model.parameters(), strict=True):
        assert imported.dtype == torch.float32
        torch.testing.assert_close(imported, original.half().float(), rtol=0, atol=0)


def test_prefixes_of_open_clips_checkpoints_are_removed() -> None:
    model, other = clip(0), clip(1)
    text = ("positional_embedding", "text_projection", "token_embedding", "transformer", "ln_final")
    state = {
        "module." + ("text." if name.startswith(text) else "") + name: tensor
        for name, tensor in export_state(model, "open_clip").items()
    }
    import_state(other, state)
    assert equal(model, other)


def test_batch_norms_may_lack_counters() -> None:
    """OpenAI's archives and old checkpoints may have no counters."""
    empty = empty_clip(model_config("RN50"))
    state = export_state(empty, "openai")
    counters = [name for name in state if name.endswith("num_batches_tracked")]
    assert len(counters) == 3 + 3 * (3 + 4 + 6 + 3) + 4
    import_state(empty, {name: tensor for name, tensor in state.items() if name not in counters})
    assert empty.image_tower.trunk.get_buffer("stem.conv1.bn.num_batches_tracked") == 0
    assert recognise_model({name: tensor for name, tensor in state.items() if name not in counters}) == "RN50"


@pytest.mark.parametrize("style", ["ours", *FOREIGN])
@pytest.mark.parametrize("size", [32, 96])
def test_positions_are_interpolated_as_in_open_clip(style: Style, size: int) -> None:
    model = clip()
    options = {**TRANSFORMER.image.options, "img_size": size}
    image = ImageTowerConfig(architecture=TRANSFORMER.image.architecture, image_size=size, options=options)
    other = CLIP(ModelConfig(embed_dim=48, image=image, text=TRANSFORMER.text))
    import_state(other, export_state(model, style))

    theirs = {"visual.positional_embedding": export_state(model, "open_clip")["visual.positional_embedding"]}
    visual = open_clip.transformer.VisionTransformer(size, 16, 128, 1, 2, 4.0)
    peer = torch.nn.Module()
    peer.visual = visual
    open_clip.model.resize_pos_embed(theirs, peer)
    positions = other.state_dict()["image_tower.trunk.pos_embed"]
    torch.testing.assert_close(positions[0], theirs["visual.positional_embedding"], rtol=0, atol=1e-6)


def test_a_released_model_of_224_pixels_can_start_one_of_336() -> None:
    state = {name: torch.zeros(t.shape, device="meta") for name, t in meta_state("ViT-L/14", "openai").items()}
    state["visual.positional_embedding"] = torch.randn(257, 1024)
    other = empty_clip(model_config("ViT-L/14@336px"))
    import_state(other, state)
    assert other.image_tower.trunk.get_parameter("pos_embed").shape == (1, 577, 1024)


def meta_state(name: str, style: Style) -> dict[str, Tensor]:
    return export_state(empty_clip(model_config(name)), style)


@pytest.mark.parametrize("style", FOREIGN)
def test_a_partial_state_is_refused_as_a_whole(style: Style) -> None:
    model, before = clip(0), clip(0)
    state = export_state(clip(1), style)
    positions = POSITIONS[style]
    removed = [name for name in state if "ln_1" in name or "layer_norm1" in name]
    for name in removed:
        del state[name]
    state["visual.extra" if style != "huggingface" else "vision_model.extra"] = torch.zeros(3)
    state[positions] = torch.zeros(8, 128)  # not a square and one more
    with pytest.raises(ValueError, match=f"style {style}") as refused:
        import_state(model, state)
    message = str(refused.value)
    assert f"{len(removed)} missing ({removed[-1]}" in message or f"{len(removed)} missing (" in message
    assert f"and {len(removed) - 5} more" in message
    assert re.search(r"1 unexpected \(vis\w+\.extra\)", message)
    assert f"1 misshapen ({positions} [8, 128] instead of [17, 128])" in message
    assert equal(model, before)


def test_weights_of_another_model_are_refused() -> None:
    with pytest.raises(ValueError, match=r"style open_clip.* 1 misshapen \(visual\.conv1\.weight \[768, 3, 32, 32\]"):
        import_state(empty_clip(model_config("ViT-B/16")), meta_state("ViT-B/32", "open_clip"))
    with pytest.raises(ValueError, match=r"\d+ missing .*and \d+ more\); \d+ unexpected"):
        import_state(empty_clip(model_config("RN50")), meta_state("ViT-B/32", "openai"))
    with pytest.raises(ValueError, match="not those of a CLIP"):
        import_state(clip(), {"fc.weight": torch.zeros(3)})


@pytest.mark.parametrize("style", FOREIGN)
def test_a_tower_unknown_to_the_style_raises(style: Style) -> None:
    with pytest.raises(ValueError, match=f"style={style} has no names for this model"):
        export_state(small_clip(), style)


def test_a_resnet_cannot_be_exported_to_hugging_face() -> None:
    with pytest.raises(ValueError, match="style=huggingface has no names for this model"):
        export_state(empty_clip(model_config("RN50")), "huggingface")


def test_openais_style_needs_heads_of_width_64() -> None:
    text = TextTowerConfig(width=64, heads=2, layers=1, context_length=12, vocab_size=600)
    model = empty_clip(ModelConfig(embed_dim=48, image=TRANSFORMER.image, text=text))
    with pytest.raises(ValueError, match=r"heads of 64 dimensions; this model's heads have \[32, 64\]"):
        export_state(model, "openai")


@pytest.mark.parametrize("name", ["RN50x4", "ViT-L/14@336px"])
def test_a_model_is_recognised_from_its_weights(name: str) -> None:
    assert recognise_model(meta_state(name, "openai")) == name


def test_weights_of_no_model_in_the_table_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    state = export_state(clip(), "huggingface")
    with pytest.raises(ValueError, match=r"style huggingface\) do not belong to any model in the table: RN50, "):
        recognise_model(state)
    monkeypatch.setitem(MODELS, "other", CONFIG)  # the style has no names for this model
    monkeypatch.setitem(MODELS, "mini", TRANSFORMER)
    assert recognise_model(state) == "mini"
