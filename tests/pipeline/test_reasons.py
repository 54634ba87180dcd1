import pytest

from pipeline.reasons import IMAGE_CHECKS, PERMANENT, POLICY, TRANSIENT, Reason, class_of, status_of


def test_reasons_have_distinct_values() -> None:
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
        with pytest.raises(ValueError, match="not a reason of fetching"):
            class_of(reason)
    else:
        classes = {"transient": TRANSIENT, "permanent": PERMANENT, "policy": POLICY}
        assert [name for name, members in classes.items() if reason in members] == [class_of(reason)]


def test_image_checks_are_permanent() -> None:
    assert {class_of(reason.value) for reason in IMAGE_CHECKS} == {"permanent"}


def test_statuses_are_those_of_img2dataset() -> None:
    assert status_of(None) == "success"
    assert status_of(Reason.RESIZE_FAILED) == status_of(Reason.NOT_AN_IMAGE) == "failed_to_resize"
    assert status_of(Reason.TIMEOUT) == status_of(Reason.ROBOTS_TXT) == "failed_to_download"
