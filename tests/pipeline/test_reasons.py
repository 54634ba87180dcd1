import pytest

from pipeline.reasons import IMAGE_CHECKS, PERMANENT, POLICY, TRANSIENT, Reason, img2dataset_status, retry_class


def test_reasons_have_distinct_values() -> None:
    values = [reason.value for reason in Reason]
    assert len(set(values)) == len(values)


BEFORE_OR_AFTER_FETCHING = ("CAPTION_", "DUPLICATE_")
NOT_OF_FETCHING = {
    *("NOT_AN_ARTICLE", "REDIRECT", "BROKEN_PAGE", "BROKEN_LINE"),
    *("NOT_A_RESPONSE", "NOT_HTML", "HTTP_ERROR_PAGE", "HTTP_REDIRECT", "REVISIT", "NO_IMAGE", "TOO_DEEP"),
    *("PAGE_TIMEOUT", "PAGE_DIED"),
    *("BROKEN_RECORD", "TRUNCATED_RECORD", "BROKEN_ARCHIVE", "BAD_URL"),
    *("NO_QUERY", "BALANCED_OUT", "OVERLAP", "IMAGE_MISSING"),
}


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_of_fetching_and_of_image_checks_has_one_class(reason: Reason) -> None:
    if reason.name in NOT_OF_FETCHING or reason.name.startswith(BEFORE_OR_AFTER_FETCHING):
        with pytest.raises(ValueError, match="not a reason of fetching"):
            retry_class(reason)
    else:
        classes = {"transient": TRANSIENT, "permanent": PERMANENT, "policy": POLICY}
        assert [name for name, members in classes.items() if reason in members] == [retry_class(reason)]


def test_image_checks_are_permanent() -> None:
    assert {retry_class(reason.value) for reason in IMAGE_CHECKS} == {"permanent"}


def test_statuses_are_those_of_img2dataset() -> None:
    assert img2dataset_status(None) == "success"
    assert img2dataset_status(Reason.RESIZE_FAILED) == img2dataset_status(Reason.NOT_AN_IMAGE) == "failed_to_resize"
    assert img2dataset_status(Reason.TIMEOUT) == img2dataset_status(Reason.ROBOTS_TXT) == "failed_to_download"
