import pyarrow as pa
import pytest

from pipeline import schemas
from pipeline.reasons import Reason
from pipeline.schemas import ANSWERS, CANDIDATES, FETCHED, PAIRS, conform, with_reasons

SMALL = pa.schema([("a", pa.int32()), ("b", pa.string()), ("c", pa.list_(pa.int32()))])


def test_conform_orders_columns_casts_them_and_adds_nulls() -> None:
    table = conform(pa.table({"b": pa.array(["x", None], pa.large_string()), "a": pa.array([1, 2], pa.int64())}), SMALL)
    assert table.schema == SMALL
    assert table.to_pydict() == {"a": [1, 2], "b": ["x", None], "c": [None, None]}


def test_conform_of_an_empty_table() -> None:
    assert conform(pa.table({}), SMALL) == SMALL.empty_table()


def test_conform_refuses_unknown_columns() -> None:
    with pytest.raises(ValueError, match=r"columns \['d', 'e'\] are not in the schema \['a', 'b', 'c'\]"):
        conform(pa.table({"e": [1], "a": [1], "d": [1]}), SMALL)


@pytest.mark.parametrize("values", [[2**40], ["x"]])
def test_conform_refuses_values_that_cannot_be_cast(values: list[object]) -> None:
    with pytest.raises(ValueError, match=r"not in range|Failed to parse"):
        conform(pa.table({"a": values}), SMALL)


def test_with_reasons_replaces_the_reasons() -> None:
    table = pa.table({"a": [1, 2], "reason": pa.array(["old", None], pa.string()), "b": [3, 4]})
    changed = with_reasons(table, [None, Reason.NOT_FOUND])
    assert changed.to_pydict() == {"a": [1, 2], "reason": [None, "not found (404, 410)"], "b": [3, 4]}
    assert changed.schema == table.schema


def test_columns_keep_their_names_and_types_from_stage_to_stage() -> None:
    """So rows pass through the chain without a mapping, except for the rename of `jpg` to `image` in shard.py."""
    types = {field.name: field.type for field in FETCHED} | {"phash": pa.uint64()}
    renamed = {"image": "jpg"}
    assert all(types[renamed.get(field.name, field.name)] == field.type for field in (*CANDIDATES, *PAIRS))
    assert ANSWERS.types == FETCHED.types


def test_column_names_are_unique() -> None:
    for name, schema in vars(schemas).items():
        if isinstance(schema, pa.Schema):
            assert len(set(schema.names)) == len(schema.names), name
