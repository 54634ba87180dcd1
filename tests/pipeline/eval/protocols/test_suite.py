import pytest
import torch

from pipeline.eval.protocols.statistics import proportion_interval
from pipeline.eval.protocols.suite import (
    CLASSIFIED,
    RANKED,
    Evaluation,
    benchmark_of,
    prompt_features,
    score_classification,
    score_retrieval,
    texts_of,
)
from pipeline.eval.protocols.zero_shot import build_classifier, class_probabilities
from pipeline.eval.sets.evaluation_sets import Dataset, Kind

COLOURS = Dataset(name="colours", kind=Kind.CLASSIFICATION, classes=("red", "green", "blue"), templates=("a {}", "{}"))
PAIRS = Dataset(name="pairs", kind=Kind.RETRIEVAL)


def one_hot(index: int, size: int = 3) -> torch.Tensor:
    return torch.eye(size)[index] * (index + 1)


def score_cosines(
    dataset: Dataset, labels: list[int], images: torch.Tensor, texts: dict[str, torch.Tensor], scale: float
) -> Evaluation:
    probabilities = class_probabilities(images, build_classifier(prompt_features(dataset, texts)), scale)
    return score_classification(dataset, labels, probabilities)


def test_each_text_is_listed_once() -> None:
    assert texts_of(COLOURS, []) == ["a red", "red", "a green", "green", "a blue", "blue"]
    assert texts_of(PAIRS, [["x", "y"], ["y", "z"]]) == ["x", "y", "z"]


def test_a_classification_is_scored_by_class_name() -> None:
    text_features = {text: one_hot(i // 2) for i, text in enumerate(texts_of(COLOURS, []))}
    labels = [0, 0, 1, 1, 0]
    image_features = torch.stack([one_hot(i) for i in (0, 0, 1, 2, 1)])
    evaluation = score_cosines(COLOURS, labels, image_features, text_features, 10.0)
    score = evaluation.scores["colours"]
    assert (score.value, score.num_samples, score.metric) == (0.6, 5, "accuracy")
    assert score.chance == pytest.approx(1 / 3)
    assert (score.low, score.high) == proportion_interval(3, 5)
    assert {name: (s.value, s.num_samples) for name, s in evaluation.per_class.items()} == {
        "red": (pytest.approx(2 / 3), 3),
        "green": (0.5, 2),
    }
    predictions = evaluation.predictions
    assert predictions.schema == CLASSIFIED
    assert predictions["truth"].to_pylist() == ["red", "red", "green", "green", "red"]
    assert predictions["predicted"].to_pylist() == ["red", "red", "green", "blue", "green"]
    assert predictions["labels"][3].as_py() == ["blue", "red", "green"]
    assert predictions["probabilities"][3].as_py()[0] == pytest.approx(1 / (1 + 2 * torch.e**-10), rel=1e-4)


def test_the_order_of_the_classes_does_not_change_the_scores() -> None:
    generator = torch.Generator().manual_seed(0)
    text_features = {text: torch.randn(8, generator=generator) for text in texts_of(COLOURS, [])}
    image_features = torch.randn(60, 8, generator=generator)
    labels = torch.randint(0, 3, (60,), generator=generator).tolist()
    reversed_set = Dataset(name="colours", kind=COLOURS.kind, classes=COLOURS.classes[::-1], templates=("a {}", "{}"))
    forwards = score_cosines(COLOURS, labels, image_features, text_features, 5.0)
    backwards = score_cosines(reversed_set, [2 - i for i in labels], image_features, text_features, 5.0)
    assert forwards.scores == backwards.scores
    assert forwards.per_class == backwards.per_class
    names = ["truth", "predicted", "labels"]
    assert forwards.predictions.select(names).equals(backwards.predictions.select(names))


def test_retrieval_scores_have_chance_level_and_interval() -> None:
    captions = [[f"caption {i}"] for i in range(20)]
    generator = torch.Generator().manual_seed(1)
    image_features = torch.randn(20, 8, generator=generator)
    text_features = {f"caption {i}": image_features[i] for i in range(20)}
    text_features["caption 0"] = -image_features[0]
    evaluation = score_retrieval(PAIRS, captions, image_features, text_features)
    assert list(evaluation.scores) == [
        f"pairs/{direction}_r@{k}" for direction in ("image_to_text", "text_to_image") for k in (1, 5, 10)
    ]
    score = evaluation.scores["pairs/text_to_image_r@1"]
    assert (score.value, score.metric) == (0.95, "r@1")
    assert score.chance == pytest.approx(1 / 20)
    assert (score.low, score.high) == proportion_interval(19, 20)
    assert evaluation.scores["pairs/image_to_text_r@10"].chance == pytest.approx(10 / 20)


def test_captions_of_one_image_are_not_counted_as_independent() -> None:
    captions = [[f"{i}-{j}" for j in range(5)] for i in range(30)]
    generator = torch.Generator().manual_seed(2)
    image_features = torch.randn(30, 4, generator=generator)
    text_features: dict[str, torch.Tensor] = {}
    for i, own in enumerate(captions):
        # All captions of an image have nearly the same embedding, so they hit or miss together.
        centre = image_features[i] + torch.randn(4, generator=generator)
        text_features |= {text: centre + 1e-3 * torch.randn(4, generator=generator) for text in own}
    evaluation = score_retrieval(PAIRS, captions, image_features, text_features)
    score = evaluation.scores["pairs/text_to_image_r@1"]
    naive = proportion_interval(round(score.value * 150), 150)
    assert score.num_samples == 150
    assert 0 < score.value < 1
    assert score.high - score.low > 1.5 * (naive[1] - naive[0])
    assert evaluation.scores["pairs/image_to_text_r@1"].chance == pytest.approx(5 / 150)


def test_retrieval_predictions_keep_the_rank_of_every_query() -> None:
    captions = [["a", "b"], ["c"]]
    text_features = {"a": one_hot(0), "b": one_hot(1), "c": one_hot(1)}
    evaluation = score_retrieval(PAIRS, captions, torch.stack([one_hot(0), one_hot(1)]), text_features)
    assert evaluation.predictions.schema == RANKED
    assert evaluation.predictions.to_pylist() == [
        {"direction": "image_to_text", "sample": 0, "caption": None, "rank": 0},
        # "b" describes image 0 but scores as high as "c" for image 1: a tie counts as wrong.
        {"direction": "image_to_text", "sample": 1, "caption": None, "rank": 1},
        {"direction": "text_to_image", "sample": 0, "caption": "a", "rank": 0},
        {"direction": "text_to_image", "sample": 0, "caption": "b", "rank": 1},
        {"direction": "text_to_image", "sample": 1, "caption": "c", "rank": 0},
    ]


def test_the_benchmark_of_a_score_is_found_by_its_name() -> None:
    assert benchmark_of("rendered_pairs/image_to_text_r@1").title == "Pairs"
    assert benchmark_of("my_birds").title == "my birds"
