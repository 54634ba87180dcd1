import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.eval.protocols.zero_shot import bag_probabilities, build_classifier, class_probabilities


class FixedEncoder:
    """A model with the interface that clip_benchmark expects, which returns given embeddings."""

    def __init__(self, features: Tensor) -> None:
        self.features = features

    def encode_text(self, rows: Tensor) -> Tensor:
        return self.features[rows]

    encode_image = encode_text


def test_classifier_equals_a_loop_over_classes_and_templates() -> None:
    features = torch.randn(7, 3, 16, generator=torch.Generator().manual_seed(0))
    built = build_classifier(features)
    for index, prompts in enumerate(features.numpy().astype(np.float64)):
        mean = sum(prompt / np.sqrt((prompt**2).sum()) for prompt in prompts) / len(prompts)
        np.testing.assert_allclose(built[index].numpy(), mean / np.sqrt((mean**2).sum()), atol=1e-6)


def test_prompt_embeddings_of_any_length_have_equal_weight() -> None:
    features = torch.tensor([[[100.0, 0.0], [0.0, 1.0]]])
    torch.testing.assert_close(build_classifier(features), torch.full((1, 2), 0.5**0.5))


def test_probabilities_equal_a_plain_softmax() -> None:
    generator = torch.Generator().manual_seed(1)
    images, classifier = torch.randn(20, 8, generator=generator), torch.randn(4, 1, 8, generator=generator)
    found = class_probabilities(images, build_classifier(classifier), 12.5).numpy()
    for row, image in enumerate(images.numpy().astype(np.float64)):
        cosines = [
            image @ c / np.sqrt((image**2).sum() * (c**2).sum()) for c in classifier[:, 0].numpy().astype(np.float64)
        ]
        exponentials = np.exp(12.5 * np.array(cosines))
        np.testing.assert_allclose(found[row], exponentials / exponentials.sum(), atol=1e-5)


def test_half_precision_features_are_scored_in_single_precision() -> None:
    features = torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(2)).bfloat16()
    assert build_classifier(features).dtype == torch.float32
    assert class_probabilities(features[:, 0], build_classifier(features), 1.0).dtype == torch.float32


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_classifier_and_accuracy_equal_clip_benchmark() -> None:
    peer = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification")
    generator = torch.Generator().manual_seed(3)
    prompts, images = torch.randn(6, 3, 16, generator=generator), torch.randn(50, 16, generator=generator)
    labels = torch.randint(0, 6, (50,), generator=generator)
    texts = [f"{template}{name}" for name in range(6) for template in "abc"]
    theirs = peer.zero_shot_classifier(
        FixedEncoder(prompts.flatten(0, 1)),
        lambda batch: torch.tensor([texts.index(text) for text in batch]),
        [str(name) for name in range(6)],
        ["a{c}", "b{c}", "c{c}"],
        "cpu",
        amp=False,
    )
    classifier = build_classifier(prompts)
    torch.testing.assert_close(classifier, theirs.T, atol=1e-6, rtol=0)
    batches = [(torch.arange(0, 30), labels[:30]), (torch.arange(30, 50), labels[30:])]
    logits, target = peer.run_classification(FixedEncoder(images), theirs, batches, "cpu", amp=False)
    ours = class_probabilities(images, classifier, 100.0)
    torch.testing.assert_close(ours, logits.softmax(dim=-1), atol=1e-5, rtol=0)
    assert target.tolist() == labels.tolist()
    assert ours.argmax(dim=1).tolist() == logits.argmax(dim=1).tolist()


def test_bag_probabilities_are_a_softmax_of_mean_log_probabilities() -> None:
    generator = torch.Generator().manual_seed(4)
    images, prompts = torch.randn(6, 5, generator=generator), torch.randn(3, 2, 5, generator=generator)
    found = bag_probabilities(images, prompts)
    for row, image in zip(found, images, strict=True):
        logits = torch.stack([(prompts[index] @ image).mean() for index in range(3)])
        torch.testing.assert_close(row, logits.softmax(dim=0))
