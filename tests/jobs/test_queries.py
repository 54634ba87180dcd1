"""Query lists from all sources, on Ray."""

import bz2
import gzip
import hashlib
import json
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
from tests.pipeline.data.queries.test_wikipedia import multistream, page

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
    queries.main(job)
    single = tmp_path / "single"
    single.mkdir()
    parts = sorted(Path(str(job.wikipedia)).iterdir())
    xml = b"".join(bz2.decompress(part.read_bytes()) for part in parts)
    (single / "pages-articles.xml.bz2").write_bytes(bz2.compress(xml))
    other = replace(job, output=str(tmp_path / "other"), wikipedia=str(single), num_buckets=7)
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
