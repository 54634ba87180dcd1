import bz2
import gzip
import logging
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.data.flows.query_flow import check_page_views, check_scripts, read_sites
from pipeline.data.queries.counting import LETTERS
from tests.pipeline.data.queries.test_wikipedia import siteinfo

BY_FILE = pa.schema([*LETTERS, ("uri", pa.string())])


def by_file(*parts: tuple[int, int, str]) -> pa.Table:
    return pa.table([list(column) for column in zip(*parts, strict=True)] or [[], [], []], schema=BY_FILE)


def test_the_share_of_a_file_counts_over_all_its_parts(caplog: pytest.LogCaptureFixture) -> None:
    """No part is refused for itself; a small share is reported, and a very small one is not."""
    parts = by_file((100, 90, "a.txt"), (900, 0, "a.txt"), (10_000, 3, "b.txt"), (0, 0, "c.txt"))
    with caplog.at_level(logging.WARNING, "clip"):
        check_scripts(parts, set(), has_titles=False)
    (message,) = (record.getMessage() for record in caplog.records)
    assert message.startswith("text=a.txt: 9.0% of its letters are in scripts without blanks between words (Chinese, ")
    assert message.endswith("The query list has no words and bi-grams of them.")
    check_scripts(by_file(), set(), has_titles=False)


@pytest.mark.parametrize(
    ("dumps", "has_titles", "message"),
    [
        (
            set(),
            False,
            r"text=a: 30% of its letters are in scripts .* Leave it out\. Titles work .* --page_views FILES",
        ),
        (set(), True, r"text=a: 30%"),
        ({"a"}, False, r"wikipedia=a: 30% .* Give page views as well, so that its titles become queries"),
    ],
)
def test_a_file_of_such_scripts_is_refused(dumps: set[str], has_titles: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_scripts(by_file((100, 30, "a"), (1000, 0, "b")), dumps, has_titles=has_titles)


def test_a_dump_of_such_a_script_gives_titles(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "clip"):
        check_scripts(by_file((100, 97, "ja.xml.bz2")), {"ja.xml.bz2"}, has_titles=True)
    assert "wikipedia=ja.xml.bz2: 97.0% of its letters" in caplog.text
    assert "but titles" in caplog.text


def test_files_of_one_dump_share_the_names_of_namespaces(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, data in (("1", siteinfo("sv")), ("2", b"<page></page>"), ("3", siteinfo("sv")), ("4", siteinfo("ja"))):
        (tmp_path / name).write_bytes(bz2.compress(data))
    first, second, third, other = (str(tmp_path / name) for name in "1234")
    with caplog.at_level(logging.WARNING, "clip"):
        sites = read_sites([first, second, third])
    assert sites[first] == sites[second] == sites[third]
    assert f"wikipedia={second} (and 0 more files): no <siteinfo>" in caplog.text
    several = read_sites([first, second, other])
    assert several[second].named is False
    assert (several[first].language, several[other].language) == ("sv", "ja")
    assert read_sites([]) == {}


def test_files_of_page_views_are_checked_by_name(tmp_path: Path) -> None:
    (tmp_path / "good.gz").write_bytes(gzip.compress(b"en Dog 5 0\n"))
    (tmp_path / "bad.gz").write_bytes(gzip.compress(b"Dog;5\n"))
    check_page_views([str(tmp_path / "good.gz")])
    with pytest.raises(ValueError, match=r"page_views=.*bad\.gz: the first line is 'Dog;5'"):
        check_page_views([str(tmp_path / "good.gz"), str(tmp_path / "bad.gz")])
