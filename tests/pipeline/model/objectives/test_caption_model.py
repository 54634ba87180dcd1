from dataclasses import replace

import pytest
import torch

from pipeline.model.config import TextTowerConfig
from pipeline.model.objectives import caption_model
from pipeline.model.objectives.caption_model import Captioner
from tests.pipeline.model.models import CONFIG, small_batch

END = CONFIG.text.vocab_size - 1


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    torch.manual_seed(0)
    network = Captioner(replace(CONFIG, objective="caption")).eval()
    # With the initial values, all tokens are about equally likely
    torch.nn.init.normal_(network.token_embedding.weight, std=0.5)
    return network


@torch.no_grad()
def test_scores_follow_the_chain_rule_token_by_token(captioner: Captioner) -> None:
    """Compare with decoding: the distribution of the next token after each prefix, without the later tokens."""
    _, tokens, lengths = small_batch(3)
    features = torch.randn(2, CONFIG.embed_dim, generator=torch.Generator().manual_seed(3))
    scores = captioner.score_captions(features, tokens)
    for m, image in enumerate(captioner.image_projection(features)):
        for n, own in enumerate(tokens):
            total = 0.0
            for position in range(1, int(lengths[n])):
                embedded = captioner.token_embedding(own[:position]) + captioner.position_embedding[:position]
                states = captioner.blocks(torch.cat([image[None], embedded])[None])
                logits = captioner.final_norm(states[0, -1]) @ captioner.token_embedding.weight.T
                total += float(logits.log_softmax(dim=0)[own[position]])
            assert float(scores[m, n]) == pytest.approx(total, rel=1e-5)


@torch.no_grad()
def test_padding_and_batching_do_not_change_a_score(captioner: Captioner, monkeypatch: pytest.MonkeyPatch) -> None:
    _, tokens, lengths = small_batch(5, seed=4)
    features = torch.randn(3, CONFIG.embed_dim, generator=torch.Generator().manual_seed(3))
    scores = captioner.score_captions(features, tokens)
    for n, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(captioner.score_captions(features, tokens[n : n + 1, :length])[:, 0], scores[:, n])
    monkeypatch.setattr(caption_model, "_MAX_LOGITS", 4 * tokens.shape[1] * CONFIG.text.vocab_size)
    torch.testing.assert_close(captioner.score_captions(features, tokens), scores)
    torch.testing.assert_close(captioner.log_likelihoods(features, tokens[:3]), scores.diagonal())


def test_the_loss_is_the_negative_log_likelihood_and_its_targets_are_counted(captioner: Captioner) -> None:
    images, tokens, lengths = small_batch(4)
    pixels = images.float() / 255
    with torch.no_grad():
        expected = -captioner.score_captions(captioner.encode_image(pixels), tokens).diagonal().sum()
    torch.testing.assert_close(captioner.summed_loss(pixels, tokens).detach(), expected)
    assert captioner.num_targets(tokens) == int((lengths - 1).sum())


def test_the_decoder_has_the_papers_63_million_parameters() -> None:
    """The language model of figure 2: 12 layers of width 512 with 8 heads (37.8M), and 49,408 tied entries (25.3M)."""
    small = replace(CONFIG, embed_dim=1024, text=TextTowerConfig(width=512, heads=8, layers=12))
    with torch.device("meta"):
        network = Captioner(small)
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in network.named_children()}
    assert counts["blocks"] == 37_828_608
    assert counts["token_embedding"] == 49_408 * 512 == 25_296_896
    decoder = sum(p.numel() for p in network.parameters()) - counts["image_tower"]
    assert round(decoder / 1e6) in (63, 64)  # 63.2M without the projection of the image's 1,024 features
    assert decoder == 37_828_608 + 25_296_896 + 77 * 512 + 2 * 512 + 1025 * 512
