from pipeline.reasons import Reason
from tests.perf.corpus.captions import SIZE, Ruled, draws, key, report, ruled, verdicts


def test_a_good_text_that_is_dropped_is_wrong_and_so_is_junk_that_is_kept() -> None:
    outcomes = {(reason, verdict) for reason in (None, "x") for verdict in ("good", "junk", "foreign", None)}
    wrong = {(reason, verdict) for reason, verdict in outcomes if Ruled("", reason, "", verdict).is_wrong}
    assert wrong == {("x", "good"), (None, "junk"), (None, "foreign")}


def test_draws_do_not_overlap_and_depend_on_the_texts_alone() -> None:
    rows = [Ruled(str(number), "x" if number % 3 else None, "", None) for number in range(900)]
    drawn = draws(rows)
    assert drawn == draws(rows[::-1])
    assert [len(group) for group in drawn.values()] == [SIZE, SIZE, SIZE, 100]
    assert len({row.text for group in drawn.values() for row in group}) == 3 * SIZE + 100


def test_texts_are_ruled_and_reported() -> None:
    dog, icon = ruled(["A dog on a beach", "menu icon"])
    assert (dog.reason, icon.reason) == (None, Reason.CAPTION_BOILERPLATE)
    line = report("two", [dog, Ruled("x", icon.reason, "x", "good")])
    assert line == "two: 2, 1 dropped (50.00%), 1 wrong (1 not judged). caption is boilerplate 1"


def test_verdicts_are_keyed_by_hashes() -> None:
    judged = verdicts()
    assert set(judged.values()) == {"good", "junk", "foreign"}
    assert {len(name) for name in judged} == {len(key("x"))}
