from pathlib import Path

import numpy as np
import pytest

from tests.perf.corpus.balancing import (
    MATCHES,
    PASSES,
    Balancing,
    Corpus,
    balance_all,
    describe,
    project,
    same_in_any_parts,
)


def test_pairs_do_not_depend_on_the_number_of_parts() -> None:
    whole = Corpus(num_pairs=10_001, num_parts=1, num_queries=500).part(0)
    parts = [Corpus(num_pairs=10_001, num_parts=3, num_queries=500).part(i) for i in range(3)]
    ids = [part["pair_id"].to_pylist() for part in parts]
    assert [ids[i % 3][i // 3] for i in range(10_001)] == whole["pair_id"].to_pylist()
    assert len(set(whole["pair_id"].to_pylist())) == 10_001
    queries = np.array(whole["query_ids"].to_pylist())
    assert queries.shape == (10_001, MATCHES)
    assert (queries[:, 1:] > queries[:, :-1]).all()
    counts = np.bincount(queries.reshape(-1))
    assert counts[0] > 1.5 * counts[2] > 5 * counts[30]


def test_the_result_does_not_depend_on_the_parts(tmp_path: Path) -> None:
    assert same_in_any_parts(60_000, tmp_path, max_pairs=200, num_buckets=3)


def test_different_inputs_give_different_checksums(tmp_path: Path) -> None:
    results = []
    for num_pairs, max_pairs in ((20_000, 100), (20_000, 99), (19_999, 100)):
        corpus = Corpus(num_pairs=num_pairs, num_parts=2)
        balancing = Balancing(
            corpus=corpus, order=[1, 0], folder=tmp_path / f"{num_pairs}-{max_pairs}", max_pairs=max_pairs
        )
        passes = balance_all(balancing)
        assert passes["check"].found["largest number of draws"] == max_pairs
        results.append(passes["select"].found["checksum"])
    assert len(set(results)) == 3
    assert f"largest number of draws: {max_pairs}" in describe(num_pairs, 2, passes)
    assert all(passes[name].seconds > 0 for name in PASSES)


def test_the_projection_shows_its_arithmetic() -> None:
    hours, size = project(20_000_000, 10.0)
    assert "70 times as many: 10.0 s x 70 = 0.19 core hours" in hours
    assert "21,338 queries above the limit x 21,306 draws x 8 B = 3.6 GB, 57 MB in each of 64 buckets" in size


def test_the_check_detects_wrong_draws(tmp_path: Path) -> None:
    balancing = Balancing(corpus=Corpus(num_pairs=20_000, num_parts=2), order=[0, 1], folder=tmp_path, max_pairs=100)
    balance_all(balancing)
    other = Balancing(corpus=balancing.corpus, order=[0, 1], folder=tmp_path, max_pairs=99)
    with pytest.raises(AssertionError, match="a query drew too many pairs"):
        balance_all(other)
