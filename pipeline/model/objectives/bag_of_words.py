"""Captions as bags of words, for two of figure 2's objectives: a text tower that reads them so, and a network that
predicts them. A word is a token between start and end.

Shapes: B batch, L tokens, D width, V vocabulary, E joint embedding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline import paper
from pipeline.model.config import ModelConfig, TextTowerConfig
from pipeline.model.towers.image_tower import ImageTower
from pipeline.model.towers.text_tower import TokenTable


def before_end(tokens_BL: Tensor, end_token: int) -> Tensor:  # noqa: N803
    """bool B x L: what stands before the end token, start included."""
    return (tokens_BL == end_token).cumsum(dim=1) == 0


def words(tokens_BL: Tensor, vocab_size: int) -> Tensor:  # noqa: N803
    """bool B x L: the tokens that are words; start and end are the last two entries of the vocabulary."""
    return before_end(tokens_BL, vocab_size - 1) & (tokens_BL != vocab_size - 2)


def unique_words(tokens_BL: Tensor, vocab_size: int) -> Tensor:  # noqa: N803
    """bool B x L: each word where it first stands."""
    same_BLL = tokens_BL[:, :, None] == tokens_BL[:, None, :]  # noqa: N806
    return words(tokens_BL, vocab_size) & ~same_BLL.tril(diagonal=-1).any(dim=2)


class BagTower(nn.Module):
    """Tokens int B x L -> features float B x E: the mean of the words' embeddings, projected linearly.

    The projection has a bias, so that a caption without words has a direction too.
    """

    def __init__(self, config: TextTowerConfig, embed_dim: int) -> None:
        super().__init__()
        self.token_embedding = TokenTable(config.vocab_size, config.width)
        self.projection = nn.Linear(config.width, embed_dim)
        nn.init.normal_(self.token_embedding.weight, std=paper.TOKEN_EMBEDDING_STD.value)
        nn.init.normal_(self.projection.weight, std=config.width**-0.5)
        nn.init.normal_(self.projection.bias, std=paper.POSITION_EMBEDDING_STD.value)

    def forward(self, tokens_BL: Tensor) -> Tensor:  # noqa: N803
        """Features float B x E, not normalised."""
        is_word_BL = words(tokens_BL, self.token_embedding.num_embeddings)  # noqa: N806
        features: Tensor = self.projection(_means(self.token_embedding(tokens_BL), is_word_BL))
        return features


class BagPredictor(nn.Module):
    """An image tower and a linear classifier over the vocabulary (bag-of-words prediction; Joulin et al. 2016).

    The loss of a pair is the cross-entropy of the prediction against the uniform distribution over the caption's unique
    words, as VirTex has it.

    Zero-shot, a prompt scores the mean log-probability of its unique words. Less the logarithm of the partition, which
    is the same for all prompts of an image, that is the mean of these words' logits, so a product of E + 1 numbers of
    the image (its features and a one, for the classifier's bias) with as many of the prompt.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.image_tower = ImageTower(config.image, config.embed_dim)
        self.classifier = nn.Linear(config.embed_dim, config.text.vocab_size)
        nn.init.normal_(self.classifier.weight, std=paper.TOKEN_EMBEDDING_STD.value)
        nn.init.zeros_(self.classifier.bias)

    def encode_image(self, images: Tensor) -> Tensor:
        """Normalised images float B x 3 x S x S -> float B x (E + 1), the last of them one."""
        return F.pad(self.image_tower(images), (0, 1), value=1.0)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Tokens int B x L -> float B x (E + 1): the mean of the classifier's rows, and of its bias, of the unique
        words. `encode_image(images) @ encode_text(tokens).T` is their mean logit."""
        rows = torch.cat([self.classifier.weight, self.classifier.bias[:, None]], dim=1)
        return _means(F.embedding(tokens, rows), unique_words(tokens, self.config.text.vocab_size))

    def log_likelihoods(self, images: Tensor, tokens: Tensor) -> Tensor:
        """Mean log-probability of the unique words of each caption for its own image, float B, zero without words."""
        logits_BV = self.classifier(self.image_tower(images))  # noqa: N806
        log_p_BV = logits_BV.to(torch.promote_types(logits_BV.dtype, torch.float32)).log_softmax(dim=1)  # noqa: N806
        log_p_BL = log_p_BV.gather(1, tokens)  # noqa: N806
        return _means(log_p_BL[:, :, None], unique_words(tokens, self.config.text.vocab_size))[:, 0]

    def num_targets(self, tokens: Tensor) -> int:
        """What a mean loss is a mean over: captions that have words."""
        return int(words(tokens, self.config.text.vocab_size).any(dim=1).sum())

    def summed_loss(self, images: Tensor, tokens: Tensor) -> Tensor:
        """The loss, summed over its targets: a scalar."""
        return -self.log_likelihoods(images, tokens).sum()


def _means(values_BLD: Tensor, chosen_BL: Tensor) -> Tensor:  # noqa: N803
    """The mean of the chosen rows, B x D; zero where none is."""
    weights_BL = chosen_BL.to(values_BLD.dtype)  # noqa: N806
    weights_BL = weights_BL / weights_BL.sum(dim=1, keepdim=True).clamp(min=1)  # noqa: N806
    # No matrix product, which autocast would round
    return (weights_BL[:, :, None] * values_BLD).sum(dim=1)
