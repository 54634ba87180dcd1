from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.inputs import read_queries, read_survival
from pipeline.schemas import QUERIES, SURVIVAL


def test_a_table_of_another_kind_is_named(tmp_path: Path) -> None:
    queries, survival = str(tmp_path / "queries.parquet"), str(tmp_path / "survival.parquet")
    pq.write_table(pa.table([[1, 0], ["b", "a"], ["u", "u"], [1.0, 2.0], [1, 0]], schema=QUERIES), queries)
    pq.write_table(pa.table([["a"], [3], [2]], schema=SURVIVAL), survival)
    assert read_queries(queries)["text"].to_pylist() == ["a", "b"]
    assert read_survival(survival).to_pylist() == [{"text": "a", "tried": 3, "kept": 2}]
    with pytest.raises(ValueError, match=r"survival=.*queries\.parquet: .* no columns \['kept', 'tried'\]; jobs.crawl"):
        read_survival(queries)
    with pytest.raises(ValueError, match=r"queries=.*not a query list.* jobs.queries makes one"):
        read_queries(survival)
