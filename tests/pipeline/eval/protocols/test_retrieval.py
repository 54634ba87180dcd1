import numpy as np
import pytest
import torch

from pipeline.eval.protocols import retrieval
from pipeline.eval.protocols.retrieval import image_ranks, text_ranks

COUNTS = [1, 5, 2, 3, 1, 4, 5, 1, 2, 2, 3, 1]


def make_case(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image_of_text = torch.repeat_interleave(torch.arange(len(COUNTS)), torch.tensor(COUNTS))
    images = torch.randn(len(COUNTS), 6, generator=generator)
    texts = images[image_of_text] + 1.5 * torch.randn(len(image_of_text), 6, generator=generator)
    return images, texts, image_of_text


@pytest.mark.parametrize("rows_at_once", [1, 5, 1_000])
def test_ranks_equal_those_of_sorted_candidates(rows_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "_ROWS_AT_ONCE", rows_at_once)
    images, texts, image_of_text = make_case(seed=0)
    cosine = torch.nn.functional.cosine_similarity(images[:, None].double(), texts[None].double(), dim=-1).numpy()
    by_image, by_text = [], []
    for image in range(len(images)):
        order = sorted(range(len(texts)), key=lambda text: -cosine[image, text])
        by_image.append(min(order.index(text) for text in range(len(texts)) if image_of_text[text] == image))
    for image in range(len(images)):
        wrong_first = [text for text in np.argsort(-cosine[image]) if image_of_text[text] != image]
        best = max(cosine[image, text] for text in range(len(texts)) if image_of_text[text] == image)
        assert by_image[image] == sum(cosine[image, text] > best for text in wrong_first)
    for text in range(len(texts)):
        order = sorted(range(len(images)), key=lambda image: -cosine[image, text])
        by_text.append(order.index(int(image_of_text[text])))
    assert text_ranks(images, texts, image_of_text).tolist() == by_image
    assert image_ranks(images, texts, image_of_text).tolist() == by_text
    assert 0 < sum(rank == 0 for rank in by_text) < len(texts)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_recalls_equal_clip_benchmark() -> None:
    peer = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval")
    images, texts, image_of_text = make_case(seed=1)
    scores = torch.nn.functional.normalize(texts, dim=-1) @ torch.nn.functional.normalize(images, dim=-1).T
    positive = torch.zeros_like(scores, dtype=torch.bool)
    positive[torch.arange(len(texts)), image_of_text] = True
    for k in (1, 2, 5, 10):
        their_image = (peer.recall_at_k(scores, positive, k) > 0).float().mean().item()
        their_text = (peer.recall_at_k(scores.T, positive.T, k) > 0).float().mean().item()
        assert (image_ranks(images, texts, image_of_text) < k).float().mean().item() == pytest.approx(their_image)
        assert (text_ranks(images, texts, image_of_text) < k).float().mean().item() == pytest.approx(their_text)


@pytest.mark.parametrize("value", [1.0, float("nan")])
def test_a_model_with_equal_scores_ranks_last(value: float) -> None:
    equal = torch.full((4, 3), value)
    own = torch.arange(4)
    assert text_ranks(equal, equal, own).tolist() == [3, 3, 3, 3]
    assert image_ranks(equal, equal, own).tolist() == [3, 3, 3, 3]
