"""Query lists from all sources, on Ray."""

import bz2
import gzip
import hashlib
import json
import logging
import math
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cluster.runs import Run
from jobs import queries
from jobs.queries import QueriesJob
from pipeline.data.queries.query_list import WORDNET_FILES, QueriesConfig
from pipeline.data.sources.byte_ranges import cut
from pipeline.data.text.match import Matcher
from pipeline.schemas import ARTICLES, QUERIES
from tests.pipeline.data.queries.test_counting import reference
from tests.pipeline.data.queries.test_wikipedia import multistream, page, siteinfo

PAGES = [
    page(f"Town {i} (Texas)", f"The red barn of [[Saint Paul|St. Paul]] number {i}. A red barn.") for i in range(40)
]
VIEWS = "".join(f"en Town_{i}_(Texas) {100 * i} 0\nen No_article_{i} 9999 0\n" for i in range(40))
CONFIG = QueriesConfig(min_word_count=40, min_bigram_count=40, min_pmi_bits=1.0, min_title_views=3800)


pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_local")]


@pytest.fixture
def job(tmp_path: Path) -> QueriesJob:
    for name in ("dumps", "text", "views", "wordnet"):
        (tmp_path / name).mkdir()
    (tmp_path / "dumps" / "pages-articles-multistream1.xml.bz2").write_bytes(multistream(PAGES[:25], 3))
    (tmp_path / "dumps" / "pages-articles-multistream2.xml.bz2").write_bytes(multistream(PAGES[25:], 3))
    (tmp_path / "text" / "words.txt").write_text("a blue barn\n" * 50)
    (tmp_path / "views" / "pageviews-20240101-000000.gz").write_bytes(gzip.compress(VIEWS.encode()))
    for name in WORDNET_FILES:
        lines = "00001740 03 n 01 barn_owl 0 000 | a bird\n00001741 03 n 01 barn 0 000 | a building\n"
        (tmp_path / "wordnet" / name).write_text(lines)
    return QueriesJob(
        output=str(tmp_path / "run"),
        wikipedia=str(tmp_path / "dumps"),
        text=str(tmp_path / "text"),
        page_views=str(tmp_path / "views"),
        wordnet=str(tmp_path / "wordnet"),
        num_buckets=3,
        queries=CONFIG,
    )


def test_the_list_has_words_bigrams_titles_and_synsets(job: QueriesJob) -> None:
    queries.main(job)
    table = pq.read_table(f"{job.output}/queries.parquet")
    assert table.schema == QUERIES
    rows = [(row["text"], row["source"], row["statistic"]) for row in table.to_pylist()]
    assert [row for row in rows if row[1] == "unigram"] == [
        *(("barn", "unigram", 130), ("a", "unigram", 90), ("red", "unigram", 80)),
        *(("blue", "unigram", 50), ("number", "unigram", 40), ("of", "unigram", 40), ("paul", "unigram", 40)),
        *(("st", "unigram", 40), ("the", "unigram", 40)),
    ]
    assert {text for text, source, _ in rows if source == "bigram"} >= {"the red", "red barn", "a blue", "paul number"}
    assert "st paul" not in {text for text, _, _ in rows}  # a full stop separates the words
    assert [row for row in rows if row[1] == "title"] == [("town 39", "title", 3900), ("town 38", "title", 3800)]
    assert rows[-1] == ("barn owl", "wordnet", 0)
    manifest = json.loads(Path(job.output, "queries.json").read_text())
    views = Path(str(job.page_views), "pageviews-20240101-000000.gz")
    assert manifest["inputs"][str(views)] == hashlib.sha256(views.read_bytes()).hexdigest()
    assert len(manifest["inputs"]) == 4
    assert manifest["queries_by_source"] == {"unigram": 9, "bigram": len(rows) - 12, "title": 2, "wordnet": 1}
    Matcher(table["text"].to_pylist())


def test_the_bytes_do_not_depend_on_the_number_of_parts(job: QueriesJob, tmp_path: Path) -> None:
    single = tmp_path / "single"
    single.mkdir()
    parts = sorted(Path(str(job.wikipedia)).iterdir())
    xml = b"".join(bz2.decompress(part.read_bytes()) for part in parts)
    (single / "pages-articles.xml.bz2").write_bytes(bz2.compress(xml))
    config = replace(CONFIG, min_title_views=100)  # titles of every bucket
    job = replace(job, queries=config)
    other = replace(job, output=str(tmp_path / "other"), wikipedia=str(single), num_buckets=7)
    queries.main(job)
    queries.main(other)
    first, second = (Path(output, "queries.parquet").read_bytes() for output in (job.output, other.output))
    assert first == second


@pytest.mark.faults
def test_metaclip_titles_do_not_depend_on_the_partition_of_articles(job: QueriesJob) -> None:
    queries.main(replace(job, num_buckets=64, queries=QueriesConfig(mode="metaclip")))
    rows = pq.read_table(f"{job.output}/queries.parquet").to_pylist()
    titles = {row["text"] for row in rows if row["source"] == "title"}
    assert titles == {f"Town {i} (Texas)" for i in range(1, 40)} | {f"No article {i}" for i in range(40)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"wikipedia": None, "text": None, "page_views": None, "wordnet": None}, "no input: give --wikipedia"),
        ({"wikipedia": "{tmp}/text"}, r"no \*\.xml\.bz2 under"),
        (
            {"wordnet": None, "page_views": None, "queries": QueriesConfig(min_word_count=10**9)},
            "no term reaches queries.min_word_count=1000000000",
        ),
    ],
)
def test_input_without_any_query_is_refused(
    job: QueriesJob, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    changes = {key: value.format(tmp=tmp_path) if isinstance(value, str) else value for key, value in changes.items()}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        queries.main(replace(job, **changes))  # type: ignore[arg-type]
    assert not Path(job.output, "queries.parquet").exists()


JAPANESE = "黒い猫がソファで寝ている。 iPhone\n" * 60


def test_a_text_without_blanks_between_words_is_refused(job: QueriesJob) -> None:
    """queries.md 5: such a text once gave three queries and status 0."""
    Path(str(job.text), "ja.txt").write_text(JAPANESE)
    with pytest.raises(ValueError, match=r"text=.*ja\.txt: 67% of its letters are in scripts without .*--page_views"):
        queries.main(job)
    assert not Path(job.output, "queries.parquet").exists()


def test_a_dump_without_blanks_between_words_gives_titles(job: QueriesJob, tmp_path: Path) -> None:
    pages = [page(title, JAPANESE) for title in ("猫", "CSI: マイアミ")]
    Path(str(job.wikipedia), "ja.xml.bz2").write_bytes(multistream(pages))
    alone = replace(job, page_views=None, text=None)
    with pytest.raises(ValueError, match=r"wikipedia=.*ja\.xml\.bz2: 67% .*Give page views"):
        queries.main(alone)
    views = "ja 猫 4000 0\nja %E7%8C%AB 9 0\nja CSI:_マイアミ 5000 0\nja 特別:検索 9000 0\nja - 90000 0\n"
    Path(str(job.page_views), "ja.gz").write_bytes(gzip.compress(views.encode()))
    queries.main(replace(job, language="ja", output=str(tmp_path / "titles")))
    rows = pq.read_table(tmp_path / "titles" / "queries.parquet").to_pylist()
    titles = [(row["text"], row["statistic"]) for row in rows if row["source"] == "title"]
    assert titles == [("csi: マイアミ", 5000), ("猫", 4009)]


def test_page_views_without_a_dump_give_titles_only(job: QueriesJob) -> None:
    """queries.md 10 and 11: no query of what is no title, and one of each title."""
    views = (
        "de - 50000 0\nde undefined 50000 0\nde  50000 0\nde %C3%84pfel 2000 1\nde Äpfel 2000 0\nde Spezial:X 9999 0\n"
    )
    Path(str(job.page_views), "pagecounts-20080101-000000.gz").write_bytes(gzip.compress(views.encode()))
    queries.main(replace(job, wikipedia=None, text=None, wordnet=None, language="de"))
    rows = pq.read_table(f"{job.output}/queries.parquet").to_pylist()
    assert [(row["text"], row["source"], row["statistic"]) for row in rows] == [("äpfel", "title", 4000)]


def test_page_views_of_programs_are_left_out(job: QueriesJob, caplog: pytest.LogCaptureFixture) -> None:
    day = bz2.compress(b"en.wikipedia Robot 1 desktop 9000 A9000\n")
    for agent in ("automated", "spider"):
        Path(str(job.page_views), f"pageviews-20240101-{agent}.bz2").write_bytes(day)
    alone = replace(job, wikipedia=None, text=None, wordnet=None)
    with caplog.at_level(logging.WARNING, "clip"):
        queries.main(alone)
    assert "2 files that count the views of programs are left out" in caplog.text
    assert "robot" not in pq.read_table(f"{job.output}/queries.parquet")["text"].to_pylist()
    with pytest.raises(ValueError, match="counts the views of programs"):
        queries.main(replace(alone, page_views=f"{job.page_views}/pageviews-20240101-spider.bz2"))


def test_page_views_of_another_wiki_are_refused(job: QueriesJob) -> None:
    with pytest.raises(ValueError, match=r"page_views=.*no title of language='xx'"):
        queries.main(replace(job, language="xx"))


def test_a_file_that_has_no_page_views_is_refused(job: QueriesJob) -> None:
    Path(str(job.page_views), "clickstream.tsv.gz").write_bytes(gzip.compress(b"other\tDog\texternal\t3\n"))
    with pytest.raises(ValueError, match=r"page_views=.*clickstream.*no line has a form of Wikimedia's page views"):
        queries.main(job)


def test_the_rest_of_a_dump_has_the_namespaces_of_its_beginning(
    job: QueriesJob, caplog: pytest.LogCaptureFixture
) -> None:
    head = siteinfo("sv")
    text = "En hund skäller. [[Fil:A.jpg|miniatyr|vänster]] [[Figura: ett spel]]"
    for name in sorted(Path(str(job.wikipedia)).iterdir()):
        name.write_bytes(multistream([page(f"Sida {name.name}", text * 50)]))
    with caplog.at_level(logging.WARNING, "clip"):
        queries.main(replace(job, text=None, page_views=None, output=f"{job.output}-before"))
    assert "(and 1 more files): no <siteinfo> with names of namespaces" in caplog.text
    assert "English names and the best-known local ones" in caplog.text
    first = min(Path(str(job.wikipedia)).iterdir())
    first.write_bytes(bz2.compress(head) + first.read_bytes())
    caplog.clear()
    with caplog.at_level(logging.WARNING, "clip"):
        queries.main(replace(job, text=None, page_views=None))
    assert "(and 0 more files): no <siteinfo> with names of namespaces" in caplog.text
    assert "the names in the other files" in caplog.text
    words = pq.read_table(f"{job.output}/queries.parquet")["text"].to_pylist()
    assert {"hund", "skäller", "figura"} < set(words)
    assert not {"miniatyr", "vänster", "fil"} & set(words)


def test_a_file_that_is_not_a_dump_is_refused(job: QueriesJob) -> None:
    Path(str(job.wikipedia), "fake.xml.bz2").write_text("<mediawiki>")
    with pytest.raises(ValueError, match=r"fake\.xml\.bz2: not a bz2 file"):
        queries.main(job)


@pytest.mark.faults
@pytest.mark.realdata
def test_counts_of_real_articles_equal_an_independent_count(clip_data: Path, tmp_path: Path) -> None:
    dump, text = clip_data / "enwiki-sample.xml.bz2", clip_data / "wikitext-valid.txt"
    job = QueriesJob(wikipedia=str(dump), text=str(text), output=str(tmp_path / "run"), num_buckets=4, part_mib=1)
    queries.main(job)
    rows = pq.read_table(f"{job.output}/queries.parquet").to_pylist()
    articles = Run.read(job.output, option="output").output("articles", len(cut([("", dump.stat().st_size)], 2**20)))
    texts = articles.table(ARTICLES)["text"].to_pylist()
    counts = reference([*texts, text.read_text(encoding="utf-8")])
    words = {term: n for term, n in counts.items() if " " not in term}
    frequent = {term: n for term, n in words.items() if n >= 100}
    assert {row["text"]: row["statistic"] for row in rows if row["source"] == "unigram"} == frequent
    bigrams = {row["text"]: row["statistic"] for row in rows if row["source"] == "bigram"}
    total = sum(words.values())
    expected = {
        term: math.log2(n * total / math.prod(words[word] for word in term.split()))
        for term, n in counts.items()
        if " " in term and n >= job.queries.min_bigram_count
    }
    bound = {term: pytest.approx(pmi) for term, pmi in expected.items() if pmi >= job.queries.min_pmi_bits}
    assert bigrams == bound
    assert len(bigrams) > 100
