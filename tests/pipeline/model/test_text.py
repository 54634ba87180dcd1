import torch

from tests.pipeline.model.models import CONFIG, small_batch, small_clip


def test_padding_and_what_stands_behind_the_end_make_no_difference() -> None:
    tower = small_clip().text_tower
    _, tokens, lengths = small_batch(6)
    expected = tower(tokens)
    noise = torch.randint(0, CONFIG.text.vocab_size - 1, tokens.shape, generator=torch.Generator().manual_seed(1))
    behind = torch.arange(tokens.shape[1]) >= lengths[:, None]
    torch.testing.assert_close(tower(torch.where(behind, noise, tokens)), expected)
    for index, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(tower(tokens[index : index + 1, :length]), expected[index : index + 1])


def test_every_token_before_the_end_matters() -> None:
    tower = small_clip().text_tower
    _, tokens, lengths = small_batch(1)
    expected = tower(tokens)
    for place in range(int(lengths[0]) - 1):
        changed = tokens.clone()
        changed[0, place] = (changed[0, place] + 1) % 500
        assert not torch.allclose(tower(changed), expected), place


def test_initial_values_are_those_of_the_released_code() -> None:
    tower = small_clip().text_tower
    width, layers = CONFIG.text.width, CONFIG.text.layers
    assert abs(tower.token_embedding.weight.std().item() - 0.02) < 1e-3
    spreads = [weight.std().item() for name, weight in tower.named_parameters() if "mlp_out.weight" in name]
    expected = width**-0.5 * (2 * layers) ** -0.5
    assert len(spreads) == layers
    assert all(abs(spread / expected - 1) < 0.15 for spread in spreads)
