"""Read or predict captions as bags of words, for two objectives of figure 2.

`BagTower` encodes a caption from its words, `BagPredictor` predicts the words. A word is a token between the start and
the end token.

Shapes: B batch, L tokens, D width, V vocabulary, E joint embedding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline import paper
from pipeline.model.config import ModelConfig, TextTowerConfig
from pipeline.model.towers.image_tower import ImageTower
from pipeline.model.towers.text_tower import TokenTable


def before_end_mask(tokens_BL: Tensor, end_token: int) -> Tensor:  # noqa: N803
    """The tokens before the end token, the start token included: bool B x L."""
    return (tokens_BL == end_token).cumsum(dim=1) == 0


def word_mask(tokens_BL: Tensor, vocab_size: int) -> Tensor:  # noqa: N803
    """The tokens that are words: bool B x L. Start and end token are the last two entries of the vocabulary."""
    return before_end_mask(tokens_BL, vocab_size - 1) & (tokens_BL != vocab_size - 2)


def unique_word_mask(tokens_BL: Tensor, vocab_size: int) -> Tensor:  # noqa: N803
    """The first occurrence of each word: bool B x L."""
    same_BLL = tokens_BL[:, :, None] == tokens_BL[:, None, :]  # noqa: N806
    return word_mask(tokens_BL, vocab_size) & ~same_BLL.tril(diagonal=-1).any(dim=2)


class BagTower(nn.Module):
    """Tokens int B x L -> features float B x E: the mean of the words' embeddings, projected linearly.

    The projection has a bias, so that the features of a caption without words are not zero.
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
        is_word_BL = word_mask(tokens_BL, self.token_embedding.num_embeddings)  # noqa: N806
        features: Tensor = self.projection(_means(self.token_embedding(tokens_BL), is_word_BL))
        return features


class BagPredictor(nn.Module):
    """An image tower and a linear classifier over the vocabulary (bag-of-words prediction; Joulin et al. 2016).

    The loss of a pair is the cross-entropy of the prediction against the uniform distribution over the caption's unique
    words, as VirTex has it.

    The zero-shot score of a prompt is the mean log-probability of its unique words. The logarithm of the partition
    function is the same for all prompts of an image and can be left out. The rest is the mean logit of the words: a dot
    product of E + 1 numbers of the image (its features, and a one for the classifier's bias) and E + 1 of the prompt.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.image_tower = ImageTower(config.image, config.embed_dim)
        self.classifier = nn.Linear(config.embed_dim, config.text.vocab_size)
        nn.init.normal_(self.classifier.weight, std=paper.TOKEN_EMBEDDING_STD.value)
        nn.init.zeros_(self.classifier.bias)

    def encode_image(self, images: Tensor) -> Tensor:
        """Normalised images float B x 3 x S x S -> float B x (E + 1): the features and a one."""
        return F.pad(self.image_tower(images), (0, 1), value=1.0)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Tokens int B x L -> float B x (E + 1): the classifier's rows and biases, averaged over the unique words.

        `encode_image(images) @ encode_text(tokens).T` is the mean logit of each caption's words for each image.
        """
        rows = torch.cat([self.classifier.weight, self.classifier.bias[:, None]], dim=1)
        return _means(F.embedding(tokens, rows), unique_word_mask(tokens, self.config.text.vocab_size))

    def log_likelihoods(self, images: Tensor, tokens: Tensor) -> Tensor:
        """The mean log-probability of each caption's unique words given its own image: float B, zero without words."""
        logits_BV = self.classifier(self.image_tower(images))  # noqa: N806
        log_p_BV = logits_BV.to(torch.promote_types(logits_BV.dtype, torch.float32)).log_softmax(dim=1)  # noqa: N806
        log_p_BL = log_p_BV.gather(1, tokens)  # noqa: N806
        return _means(log_p_BL[:, :, None], unique_word_mask(tokens, self.config.text.vocab_size))[:, 0]

    def num_targets(self, tokens: Tensor) -> int:
        """The divisor of the mean loss: the number of captions that have words."""
        return int(word_mask(tokens, self.config.text.vocab_size).any(dim=1).sum())

    def summed_loss(self, images: Tensor, tokens: Tensor) -> Tensor:
        """The loss summed over all targets: a scalar."""
        return -self.log_likelihoods(images, tokens).sum()


def _means(values_BLD: Tensor, chosen_BL: Tensor) -> Tensor:  # noqa: N803
    """The mean over the chosen positions of each row: B x D, zero for a row without any."""
    weights_BL = chosen_BL.to(values_BLD.dtype)  # noqa: N806
    weights_BL = weights_BL / weights_BL.sum(dim=1, keepdim=True).clamp(min=1)  # noqa: N806
    # Not a matrix product: autocast would compute it in half precision
    return (weights_BL[:, :, None] * values_BLD).sum(dim=1)
