import numpy as np
import pyarrow as pa
import pytest

from pipeline.data.duplicates.embeddings import Embedder, Matrix, cosines, to_column, to_matrix
from pipeline.schemas import EMBEDDINGS
from tests.pipeline.data.rows import ids


def unit(count: int, dimensions: int = 8, seed: int = 0) -> Matrix:
    values = np.random.default_rng(seed).standard_normal((count, dimensions)).astype(np.float32)
    return np.asarray(values / np.linalg.norm(values, axis=1, keepdims=True), np.float32)


def test_a_column_stores_embeddings_in_half_precision() -> None:
    embeddings = unit(5)
    column = to_column(embeddings)
    assert column.type == EMBEDDINGS.field("embedding").type
    assert np.array_equal(to_matrix(column), embeddings.astype(np.float16).astype(np.float32))
    assert np.array_equal(to_matrix(column[2:]), to_matrix(column)[2:])
    assert np.array_equal(to_matrix(pa.chunked_array([column[:2], column[2:]])), to_matrix(column))
    assert to_matrix(column[:0]).shape == (0, 0)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 3.0, 0.0])
def test_embeddings_that_are_not_unit_vectors_are_refused(wrong: float) -> None:
    embeddings = unit(3)
    embeddings[1] = wrong
    with pytest.raises(ValueError, match="do not have length one"):
        to_column(embeddings)


def test_embeddings_of_two_encoders_are_refused() -> None:
    column = pa.array([[1.0, 0.0], [1.0]], pa.list_(pa.float16()))
    with pytest.raises(ValueError, match=r"\[1, 2\] dimensions"):
        to_matrix(column)


def test_cosines_do_not_depend_on_the_other_rows() -> None:
    first, second = unit(700, 33), unit(700, 33, seed=1)
    whole = cosines(first, second)
    assert np.allclose(whole, (first * second).sum(axis=1), atol=1e-6)
    assert whole.tolist() == [float(cosines(first[i : i + 1], second[i : i + 1])[0]) for i in range(700)]


def test_pictures_of_a_table_are_embedded_row_by_row() -> None:
    embeddings = {b"a": [1.0, 0.0], b"b": [0.0, 1.0]}
    embedder = Embedder(lambda images: np.array([embeddings[image] for image in images], np.float32))
    table = pa.table({"pair_id": ids(3), "jpg": pa.array([b"a", b"b", b"a"], pa.large_binary())})
    found = embedder(table)
    assert found.schema == EMBEDDINGS
    assert found.to_pydict() == {"pair_id": ids(3), "embedding": [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]}
