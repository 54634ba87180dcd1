import numpy as np

from tests.perf.corpus.detection import Found
from tests.perf.corpus.embeddings import by_embedding, in_cells, merged, with_quarters
from tests.pipeline.data.duplicates.test_embeddings import unit
from tests.pipeline.data.rows import encode, opened, photo_like


def test_all_pairs_within_the_distance_are_found_once() -> None:
    embeddings = unit(2_300, 6)
    found = by_embedding(embeddings, 0.02)
    products = embeddings @ embeddings.T
    i, j = np.nonzero(np.triu(products >= 1 - 0.02, 1))
    assert sorted(map(tuple, found.pairs.tolist())) == list(zip(i.tolist(), j.tolist(), strict=True))
    assert np.allclose(found.distances, 1 - products[found.pairs[:, 0], found.pairs[:, 1]], atol=1e-6)


def test_pairs_in_both_sets_are_counted_once() -> None:
    first, second = np.array([[0, 1], [2, 5]]), np.array([[2, 5], [3, 4]])
    assert merged(Found(first, np.zeros(2)), Found(second, np.ones(2))).pairs.tolist() == [[0, 1], [2, 5], [3, 4]]


def test_quarters_are_separate_pictures() -> None:
    found = with_quarters([encode(photo_like(0, 64, 40))])
    assert [opened(image).size for image in found] == [(64, 40)] + [(32, 20)] * 4


def test_cells_are_compared_with_all_pairs() -> None:
    rows = list(in_cells(unit(600, 4), 0.99))
    assert rows[0].startswith("| all with all |")
    assert len(rows) == 5
