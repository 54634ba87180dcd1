import torch
import torch.nn.functional as F

from pipeline.model.config import model_config
from pipeline.model.towers.text_tower import TextTower
from pipeline.train.step.grad_cache import text_chunks
from tests.pipeline.model.models import CONFIG, small_batch, small_clip


def test_tokens_after_the_end_token_and_padding_have_no_effect() -> None:
    tower = small_clip().text_tower
    _, tokens, lengths = small_batch(6)
    expected = tower(tokens)
    noise = torch.randint(0, CONFIG.text.vocab_size - 1, tokens.shape, generator=torch.Generator().manual_seed(1))
    is_after_end = torch.arange(tokens.shape[1]) >= lengths[:, None]
    torch.testing.assert_close(tower(torch.where(is_after_end, noise, tokens)), expected)
    for index, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(tower(tokens[index : index + 1, :length]), expected[index : index + 1])


def test_chunks_padded_to_their_longest_caption_give_the_features_of_full_padding() -> None:
    config = model_config("small").text
    torch.manual_seed(0)
    tower = TextTower(config, 256).eval()
    lengths = torch.arange(3, config.context_length + 1)
    tokens = torch.randint(0, config.vocab_size - 2, (len(lengths), config.context_length))
    tokens[torch.arange(config.context_length) >= lengths[:, None]] = 0
    tokens[torch.arange(len(lengths)), lengths - 1] = config.vocab_size - 1
    with torch.no_grad():
        padded = F.normalize(tower(tokens), dim=-1)
        cut = F.normalize(torch.cat([tower(chunk) for chunk in text_chunks(tokens, lengths, 10)]), dim=-1)
    assert config.context_length == 77
    assert (cut - padded).abs().max() <= 1e-6


def test_every_token_before_the_end_token_changes_the_features() -> None:
    tower = small_clip().text_tower
    _, tokens, lengths = small_batch(1)
    expected = tower(tokens)
    for position in range(int(lengths[0]) - 1):
        changed = tokens.clone()
        changed[0, position] = (changed[0, position] + 1) % 500
        assert not torch.allclose(tower(changed), expected), position


def test_initial_values_equal_those_of_the_released_code() -> None:
    tower = small_clip().text_tower
    width, layers = CONFIG.text.width, CONFIG.text.layers
    assert abs(tower.token_embedding.weight.std().item() - 0.02) < 1e-3
    spreads = [weight.std().item() for name, weight in tower.named_parameters() if "mlp_out.weight" in name]
    expected = width**-0.5 * (2 * layers) ** -0.5
    assert len(spreads) == layers
    assert all(abs(spread / expected - 1) < 0.15 for spread in spreads)
