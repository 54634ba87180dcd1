from typing import Any, get_args

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.crawl.retries import Retry, as_answers, due, merge, reasons_to_retry
from pipeline.reasons import Reason, ReasonClass, retry_class
from pipeline.schemas import ANSWERS, CANDIDATES, FETCHED
from tests.pipeline.data.rows import fetched, ids

FAILURES = [Reason.NOT_FOUND, Reason.ROBOTS_TXT, Reason.TIMEOUT, Reason.MOVED, Reason.CORRUPT_IMAGE, Reason.UNSAFE]
OUTCOMES = [None, *FAILURES, Reason.BALANCED_OUT]


def rows(*reasons: str | None, **columns: Any) -> pa.Table:
    """FETCHED with these reasons; rows without a reason have an image, and moved rows have a redirect URL."""
    numbers = range(len(reasons))
    return fetched(
        url=[f"http://a.example/{number}" for number in numbers],
        caption=[f"caption {number}" for number in numbers],
        reason=list(reasons),
        jpg=[None if reason else b"image %d" % number for number, reason in enumerate(reasons)],
        redirect_url=[
            f"http://b.example/{number}" if reason == Reason.MOVED else None for number, reason in enumerate(reasons)
        ],
        **columns,
    )


@pytest.mark.parametrize("retry", get_args(ReasonClass))
def test_only_rows_of_the_class_are_retried(retry: Retry) -> None:
    table = rows(*OUTCOMES)
    found = due(table, retry)
    wanted = [reason for reason in FAILURES if retry_class(reason) == retry]
    assert found["pair_id"].to_pylist() == [ids(len(OUTCOMES))[OUTCOMES.index(reason)] for reason in wanted]
    assert len(wanted) > 0
    assert found.schema.names == [*CANDIDATES.names, "redirect_url"]
    assert found.select(CANDIDATES.names).schema == CANDIDATES
    assert found["url"].to_pylist() == [f"http://a.example/{OUTCOMES.index(reason)}" for reason in wanted]
    assert found["reason"].null_count == found["image"].null_count == found.num_rows, (
        "selected rows have neither reason nor image"
    )


def test_moved_rows_are_requested_at_their_new_url() -> None:
    found = due(rows(*OUTCOMES), "moved")
    row = OUTCOMES.index(Reason.MOVED)
    assert found["redirect_url"].to_pylist() == [f"http://b.example/{row}"]
    assert found["url"].to_pylist() == [f"http://a.example/{row}"]


def test_every_fetching_reason_is_in_one_class_and_moved_is_in_two() -> None:
    for reason in Reason:
        kinds = [retry for retry in get_args(Retry) if reason in reasons_to_retry(retry)]
        try:
            assert kinds == [retry_class(reason)] + ["moved"] * (reason == Reason.MOVED)
        except ValueError:
            assert kinds == [], reason


def test_rows_that_must_not_move_again_have_too_many_redirects() -> None:
    table = rows(*OUTCOMES, error_message=["other"] * len(OUTCOMES))
    may, must_not = as_answers(table, may_move=True), as_answers(table, may_move=False)
    assert may.schema == must_not.schema == ANSWERS
    assert may["outcome"].to_pylist() == OUTCOMES
    assert may["redirect_url"] == table["redirect_url"]
    ended = [Reason.TOO_MANY_REDIRECTS if reason == Reason.MOVED else reason for reason in OUTCOMES]
    assert must_not["outcome"].to_pylist() == ended
    assert must_not["redirect_url"].null_count == len(OUTCOMES)
    assert [message == "other" for message in must_not["error_message"].to_pylist()] == [
        reason != Reason.MOVED for reason in OUTCOMES
    ]
    unchanged = [name for name in ANSWERS.names if name not in {"outcome", "redirect_url", "error_message"}]
    assert must_not.select(unchanged) == may.select(unchanged)


def test_without_answers_nothing_changes() -> None:
    table = rows(*OUTCOMES)
    assert merge(table, None) is table


@settings(deadline=None)
@given(data=st.data())
def test_answers_replace_their_rows(data: st.DataObject) -> None:
    before = data.draw(st.lists(st.sampled_from(OUTCOMES), min_size=1, max_size=12))
    retried = data.draw(st.permutations([n for n, reason in enumerate(before) if reason]))
    retried = retried[: data.draw(st.integers(1, max(1, len(retried))))]
    outcomes = [data.draw(st.sampled_from(OUTCOMES)) for _ in retried]
    table = rows(*before)
    if not retried:
        return
    answers = table.take(retried)
    columns = {
        "reason": pa.array(outcomes, pa.string()),
        "jpg": pa.array([None if outcome else b"later %d" % n for n, outcome in zip(retried, outcomes, strict=True)]),
    }
    for name, column in columns.items():
        column_index = FETCHED.get_field_index(name)
        answers = answers.set_column(column_index, FETCHED.field(name), column.cast(FETCHED.field(name).type))
    merged = merge(table, as_answers(answers, may_move=True))
    assert merged.schema == FETCHED
    later = dict(zip(retried, outcomes, strict=True))
    expected = [
        row | ({"reason": later[n], "jpg": None if later[n] else b"later %d" % n} if n in later else {})
        for n, row in enumerate(table.to_pylist())
    ]
    assert merged.to_pylist() == expected
