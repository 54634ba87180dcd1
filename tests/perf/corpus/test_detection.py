import numpy as np

from tests.perf.corpus.copies import TRANSFORMATIONS, jpeg, versions
from tests.perf.corpus.detection import Found, by_flips, by_hash, judge
from tests.pipeline.data.rows import opened, photo_like

LAST = 2**64 - 1


def test_recall_counts_copies_and_precision_counts_all_pairs() -> None:
    """Two photographs with three versions each: 0 1 2 and 3 4 5."""
    pairs = np.array([[0, 1], [0, 2], [1, 2], [3, 5], [2, 4]])
    found = Found(pairs, np.array([0.0, 0.2, 0.1, 0.0, 0.2]))
    none, some, all_of_them = judge(found, [-1, 0.1, 0.2], num_photographs=2, num_versions=3)
    assert (none.recall.tolist(), none.num_found, none.precision) == ([0, 0], 0, 1)
    assert (some.recall.tolist(), some.num_found, some.num_wrong) == ([0.5, 0.5], 3, 0)
    assert (all_of_them.recall.tolist(), all_of_them.num_found) == ([0.5, 1.0], 5)
    assert (all_of_them.num_wrong, all_of_them.precision) == (1, 0.8)


def test_mirrored_hashes_add_pairs_and_reduce_distances() -> None:
    hashes = np.array([0, 3, LAST], np.uint64)
    mirrored = np.array([1, LAST - 1, 7], np.uint64)
    assert by_hash(hashes, 2).pairs.tolist() == [[0, 1]]
    found = by_flips(hashes, mirrored, 2)
    assert found.pairs.tolist() == [[0, 1], [1, 2]]
    assert found.distances.tolist() == [1, 1], "3 is 1 bit from the mirrored hashes 1 and 7"


def test_every_transformation_makes_a_different_file() -> None:
    files = versions(jpeg(photo_like(0, 240, 180)))
    assert len(files) == len(set(files)) == len(TRANSFORMATIONS) + 1
    sizes = {name: opened(file).size for name, file in zip(TRANSFORMATIONS, files[1:], strict=True)}
    assert sizes["half the size"] == (120, 90)
    assert sizes["cropped by 10%"] == (216, 162)
    assert sizes["black border, 5% a side"] == (264, 204)
