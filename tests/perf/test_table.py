import pytest

from tests.perf.__main__ import BEGIN, END, insert, table
from tests.perf.corpus.rows import Row, seconds_of_both


def test_table_states_ratio_and_command() -> None:
    text = table([Row(work="hash", unit="images/s", ours=3000.0, peer_name="other", peer=1500.0)])
    assert "| hash | images/s | 3,000 | 1,500 | other | 2.00 | `make bench` |" in text


def test_insert_replaces_only_the_text_between_the_markers() -> None:
    document = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert insert(document, "new") == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    with pytest.raises(ValueError, match="markers"):
        insert("nothing here", "new")


def test_ours_and_the_peer_run_alternately() -> None:
    calls: list[str] = []
    seconds_of_both(lambda: calls.append("ours"), lambda: calls.append("peer"), repeats=2)
    assert calls == ["ours", "peer", "ours", "peer"]
