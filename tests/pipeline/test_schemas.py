import pyarrow as pa
import pytest

from pipeline import schemas
from pipeline.schemas import (
    ANSWERS,
    CANDIDATES,
    FETCHED,
    IMAGE_CHECKS,
    PAIRS,
    PERMANENT,
    POLICY,
    TRANSIENT,
    Reason,
    class_of,
    conform,
    status_of,
    with_reasons,
)

SMALL = pa.schema([("a", pa.int32()), ("b", pa.string()), ("c", pa.list_(pa.int32()))])


def test_conform_orders_casts_and_fills() -> None:
    table = conform(pa.table({"b": pa.array(["x", None], pa.large_string()), "a": pa.array([1, 2], pa.int64())}), SMALL)
    assert table.schema == SMALL
    assert table.to_pydict() == {"a": [1, 2], "b": ["x", None], "c": [None, None]}


def test_conform_of_no_rows() -> None:
    assert conform(pa.table({}), SMALL) == SMALL.empty_table()


def test_conform_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match=r"columns \['d', 'e'\] are not in the schema \['a', 'b', 'c'\]"):
        conform(pa.table({"e": [1], "a": [1], "d": [1]}), SMALL)


@pytest.mark.parametrize("values", [[2**40], ["x"]])
def test_conform_refuses_what_does_not_fit(values: list[object]) -> None:
    with pytest.raises(ValueError, match=r"not in range|Failed to parse"):
        conform(pa.table({"a": values}), SMALL)


def test_with_reasons_replaces_them() -> None:
    table = pa.table({"a": [1, 2], "reason": pa.array(["old", None], pa.string()), "b": [3, 4]})
    changed = with_reasons(table, [None, Reason.NOT_FOUND])
    assert changed.to_pydict() == {"a": [1, 2], "reason": [None, "not found (404, 410)"], "b": [3, 4]}
    assert changed.schema == table.schema


def test_reasons_are_told_apart_by_what_people_read() -> None:
    values = [reason.value for reason in Reason]
    assert len(set(values)) == len(values)


BEFORE_OR_AFTER_FETCHING = ("CAPTION_", "DUPLICATE_")
NOT_OF_FETCHING = {
    *("NOT_AN_ARTICLE", "REDIRECT", "BROKEN_PAGE", "BROKEN_LINE"),
    *("NOT_A_RESPONSE", "NOT_HTML", "HTTP_ERROR_PAGE", "HTTP_REDIRECT", "REVISIT", "NO_IMAGE", "TOO_DEEP"),
    *("BROKEN_RECORD", "TRUNCATED_RECORD", "BROKEN_ARCHIVE", "BAD_URL"),
    *("NO_QUERY", "BALANCED_OUT", "OVERLAP", "IMAGE_MISSING"),
}


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_of_fetching_and_of_image_checks_has_one_class(reason: Reason) -> None:
    if reason.name in NOT_OF_FETCHING or reason.name.startswith(BEFORE_OR_AFTER_FETCHING):
        with pytest.raises(ValueError, match="no reason of fetching"):
            class_of(reason)
    else:
        classes = {"transient": TRANSIENT, "permanent": PERMANENT, "policy": POLICY}
        assert [name for name, members in classes.items() if reason in members] == [class_of(reason)]


def test_image_checks_are_permanent() -> None:
    assert {class_of(reason.value) for reason in IMAGE_CHECKS} == {"permanent"}


def test_a_stage_adds_columns_to_those_before_it() -> None:
    """So that rows pass through the chain without a mapping."""
    types = {field.name: field.type for field in FETCHED} | {"phash": pa.uint64()}
    renamed = {"image_url": "url", "image": "jpg"}
    assert all(types[renamed.get(field.name, field.name)] == field.type for field in (*CANDIDATES, *PAIRS))
    assert ANSWERS.types == FETCHED.types


def test_column_names_are_unique() -> None:
    for name, schema in vars(schemas).items():
        if isinstance(schema, pa.Schema):
            assert len(set(schema.names)) == len(schema.names), name


def test_statuses_are_img2datasets() -> None:
    assert status_of(None) == "success"
    assert status_of(Reason.RESIZE_FAILED) == status_of(Reason.NOT_AN_IMAGE) == "failed_to_resize"
    assert status_of(Reason.TIMEOUT) == status_of(Reason.ROBOTS_TXT) == "failed_to_download"
