"""Run the corpus pipeline from archives to a snapshot, on a web where the fate of every image is known."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.parts import Output
from cluster.runs import Run
from jobs import crawl, curate, queries
from jobs.crawl import CrawlJob
from jobs.curate import CurateJob
from jobs.demo import gather
from jobs.demo.web.dirt import GOOD, Fate
from jobs.demo.web.server import SiteServer
from jobs.demo.web.site import build_site
from jobs.options.encoders import EncoderConfig
from jobs.queries import QueriesJob
from pipeline.data.balance.balancing import BalanceConfig
from pipeline.data.crawl.fetch import FetchConfig
from pipeline.data.duplicates.embedding_neighbours import CellsConfig
from pipeline.data.duplicates.overlap import OverlapConfig, build_index_table
from pipeline.data.images.image_header import ImageConfig
from pipeline.data.queries.query_list import QueriesConfig
from pipeline.data.snapshots.shard import ShardConfig
from pipeline.data.snapshots.snapshot import Snapshot
from pipeline.data.web.urls import normalize_url
from pipeline.model.encoders.duplicate_detector import detector_config, to_files
from pipeline.reasons import IMAGE_CHECKS, POLICY, TRANSIENT, Reason
from pipeline.schemas import CANDIDATES, FETCHED
from pipeline.train.detector.duplicate_detector import new_detector

pytestmark = pytest.mark.cluster

NUM_BUCKETS = 3
BALANCE = BalanceConfig(max_pairs_per_query=100)
FEW = BalanceConfig(max_pairs_per_query=2)
"""A limit so low that queries must sample their pairs."""
IMAGE = ImageConfig(image_size=64)
SHARD = ShardConfig(target_bytes=200_000)
DUPLICATES = {Reason.DUPLICATE_URL, Reason.DUPLICATE_SHA256, Reason.DUPLICATE_PERCEPTUAL}
CAPTION_RULES = {reason for reason in Reason if reason.name.startswith("CAPTION_")}
REASONS = {
    Fate.JUNK_CAPTION: CAPTION_RULES | {Reason.NO_QUERY},
    Fate.FOREIGN_CAPTION: {Reason.CAPTION_LANGUAGE, Reason.NO_QUERY},  # one in a hundred could be English
    Fate.NOT_FOUND: {Reason.NOT_FOUND},
    Fate.GONE: {Reason.NOT_FOUND},
    Fate.SERVER_ERROR: {Reason.SERVER_ERROR},
    Fate.RESET: {Reason.CONNECTION},
    Fate.REDIRECT_LOOP: {Reason.TOO_MANY_REDIRECTS},
    Fate.REDIRECT_PRIVATE: {Reason.NOT_PUBLIC, Reason.BAD_SCHEME},
    Fate.PRIVATE: {Reason.NOT_PUBLIC, Reason.BAD_SCHEME},
    Fate.ROBOTS: {Reason.ROBOTS_TXT},
    Fate.NOAI: {Reason.X_ROBOTS_TAG},
    Fate.TRUNCATED: {Reason.INCOMPLETE, Reason.CORRUPT_IMAGE},
    Fate.BOMB: {Reason.TOO_MANY_PIXELS},
    Fate.HTML: {Reason.NOT_AN_IMAGE},
}


@dataclass(frozen=True)
class Corpus:
    folder: Path
    served: list[str]
    """The requests that the server received, as host/path."""

    @property
    def snapshot(self) -> Snapshot:
        return Snapshot.open(str(self.folder / "curate" / "dataset"))

    def output(self, name: str) -> Output:
        return Run.read(str(self.folder / "crawl"), option="crawl").output(name, NUM_BUCKETS)

    def reasons(self) -> Mapping[str, set[str | None]]:
        """All outcomes of each URL: reasons, and None if the snapshot has a pair with this URL."""
        crawled, curated = (Run.read(str(self.folder / job), option=job) for job in ("crawl", "curate"))
        num_archives = len(list((self.folder / "site" / "warc").glob("*.warc.gz")))
        outputs = [
            crawled.output("candidates", num_archives),
            self.output("unique"),
            self.output("fetched"),
            curated.output("placed", NUM_BUCKETS),
        ]
        outcomes: dict[str, set[str | None]] = {}
        for output in outputs:
            for part in range(len(output.parts)):
                table = output.dropped(part, ["url", "reason"])
                for row in table.to_pylist() if table is not None else []:
                    outcomes.setdefault(row["url"], set()).add(row["reason"])
        for shard in self.snapshot.shards:
            for url in pq.read_table(shard.path, columns=["url"])["url"].to_pylist():
                outcomes.setdefault(url, set()).add(None)
        return outcomes


def queries_job(folder: Path) -> QueriesJob:
    thresholds = QueriesConfig(min_word_count=8, min_bigram_count=8)
    return QueriesJob(
        text=str(folder / "site" / "corpus.txt"), output=str(folder / "queries"), num_buckets=2, queries=thresholds
    )


def crawl_job(folder: Path, output: Path, port: int) -> CrawlJob:
    return CrawlJob(
        input=str(folder / "site" / "warc"),
        queries=str(folder / "queries" / "queries.parquet"),
        output=str(output),
        num_buckets=NUM_BUCKETS,
        balance=BALANCE,
        fetch=FetchConfig(connect_to={"*.example": f"127.0.0.1:{port}"}, min_interval_seconds=0.005),
        image=IMAGE,
    )


def curate_job(crawled: Path | list[str], output: Path, balance: BalanceConfig = BALANCE) -> CurateJob:
    crawls = crawled if isinstance(crawled, list) else str(crawled)
    return CurateJob(crawl=crawls, output=str(output), num_buckets=NUM_BUCKETS, balance=balance, shard=SHARD)


def rows_of(snapshot: Snapshot) -> pa.Table:
    return pa.concat_tables([pq.read_table(shard.path) for shard in snapshot.shards]).sort_by("pair_id")


@pytest.fixture(scope="module")
def corpus(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Corpus]:  # noqa: ARG001
    folder = tmp_path_factory.mktemp("corpus")
    build_site(folder / "site", seed=7, num_images=400, num_pages=80)
    queries.main(queries_job(folder))
    with SiteServer(folder / "site") as server:
        crawl.main(crawl_job(folder, folder / "crawl", server.port))
        curate.main(curate_job(folder / "crawl", folder / "curate"))
        yield Corpus(folder, [f"{entry.host}{entry.path}" for entry in server.log])


def stored(url: str) -> str:
    """A URL of the site as candidates hold it."""
    return url if url.startswith("data:") else normalize_url(url)


def test_every_image_gets_the_reason_of_its_fate(corpus: Corpus) -> None:
    found = corpus.reasons()
    expected = json.loads((corpus.folder / "site" / "expected.json").read_text())
    num_pairs = Counter(row["url"] for row in expected)
    wrong = []
    for row in expected:
        reasons = found.get(stored(row["url"]), set())
        # An image may have junk in one attribute and a good caption in another; then the good caption counts
        final = reasons - CAPTION_RULES or reasons
        if num_pairs[row["url"]] == 1 and row["fate"] in REASONS and not (final and final <= REASONS[row["fate"]]):
            wrong.append((row["fate"], row["url"], reasons))
    assert wrong == []


def test_good_pairs_are_kept_and_duplicates_are_not(corpus: Corpus) -> None:
    found = corpus.reasons()
    expected = json.loads((corpus.folder / "site" / "expected.json").read_text())
    good = [stored(row["url"]) for row in expected if row["fate"] in GOOD - {Fate.DATA_URL}]
    allowed = DUPLICATES | {Reason.BALANCED_OUT, Reason.CAPTION_SHORT, None}
    dropped = {url: found.get(url) for url in good if None not in found.get(url, set())}
    assert all(None in found[url] or found[url] & allowed for url in good), dropped
    assert len(dropped) < 0.15 * len(good)
    for row in expected:
        if row["fate"] == Fate.DUPLICATE_EXACT:
            both = [found.get(stored(row[name]), set()) for name in ("url", "same_as")]
            assert sum(None in reasons for reasons in both) <= 1, row


def test_funnel_accounts_for_every_row(corpus: Corpus) -> None:
    stages = {
        record["stage"]: record
        for job in ("crawl", "curate")
        for record in json.loads((corpus.folder / job / "funnel.json").read_text())
    }
    chain = ("candidates", "unique", "fetched", "addresses", "placed", "shards")
    for before, after in pairwise(chain):
        assert stages[after]["kept"] + sum(stages[after]["dropped"].values()) == stages[before]["kept"]
    records = json.loads((corpus.folder / "site" / "site.json").read_text())["num_records"]
    assert stages["candidates"]["kept"] + sum(stages["candidates"]["dropped"].values()) >= records
    assert corpus.snapshot.num_rows == stages["shards"]["kept"] > 200


def test_foreign_captions_are_dropped_and_languages_are_recorded(corpus: Corpus) -> None:
    found = corpus.reasons()
    expected = json.loads((corpus.folder / "site" / "expected.json").read_text())
    foreign = [found[stored(row["url"])] for row in expected if row["fate"] == Fate.FOREIGN_CAPTION]
    assert sum(Reason.CAPTION_LANGUAGE in reasons for reasons in foreign) >= 0.9 * len(foreign) > 5
    assert not any(
        Reason.CAPTION_LANGUAGE in found.get(stored(row["url"]), set()) for row in expected if row["fate"] in GOOD
    )
    tables = [pq.read_table(shard.path, columns=["language"]) for shard in corpus.snapshot.shards]
    languages = Counter(language for table in tables for language in table["language"].to_pylist())
    assert languages["en"] > 0.9 * languages.total()


def test_urls_that_robots_txt_forbids_are_not_requested(corpus: Corpus) -> None:
    expected = json.loads((corpus.folder / "site" / "expected.json").read_text())
    forbidden = [row["url"].removeprefix("http://") for row in expected if row["fate"] == Fate.ROBOTS]
    assert forbidden
    assert not set(forbidden) & set(corpus.served)
    assert any(path.endswith("/robots.txt") for path in corpus.served)


def test_the_snapshot_is_valid_and_a_rerun_adds_no_version(corpus: Corpus) -> None:
    snapshot = corpus.snapshot
    assert snapshot.verify() == []
    assert len(snapshot.shards) > 1
    assert 0.5 < snapshot.num_bytes / len(snapshot.shards) / SHARD.target_bytes < 1.1, "shards have the target size"
    curate.main(curate_job(corpus.folder / "crawl", corpus.folder / "curate"))
    assert Snapshot.open(snapshot.uri).name == snapshot.name == "v00000001"


def test_survival_counts_tried_and_kept_pairs_of_each_query(corpus: Corpus) -> None:
    texts = pq.read_table(corpus.folder / "queries" / "queries.parquet")["text"].to_pylist()
    fetched = corpus.output("fetched")
    dropped = [fetched.dropped(part, ["query_ids", "reason"]) for part in range(NUM_BUCKETS)]
    dropped_rows = [row for table in dropped if table is not None for row in table.to_pylist()]
    kept = Counter(texts[q] for ids in fetched.table(FETCHED)["query_ids"].to_pylist() for q in ids)
    lost = Counter(texts[q] for row in dropped_rows if row["reason"] != Reason.BALANCED_OUT for q in row["query_ids"])
    survival = pq.read_table(corpus.folder / "crawl" / "survival.parquet")
    found = {row["text"]: (row["tried"], row["kept"]) for row in survival.to_pylist()}
    assert found == {text: (kept[text] + lost[text], kept[text]) for text in kept | lost}
    assert sum(lost.values()) > 0


def test_link_rot_counts_the_outcomes_of_all_urls(corpus: Corpus) -> None:
    fetched, columns = corpus.output("fetched"), ["url", "reason"]
    tables = [read(part, columns) for part in range(NUM_BUCKETS) for read in (fetched.part, fetched.dropped)]
    rows = [row for table in tables if table is not None for row in table.to_pylist()]
    requested = [row for row in rows if row["reason"] != Reason.BALANCED_OUT and row["url"].startswith("http")]
    counts = gather.link_rot(corpus.folder)
    hosts = {count.name: count.tried for count in counts if count.by == "host"}
    assert hosts == Counter(urlsplit(row["url"]).hostname for row in requested)
    for by in ("domain", "host", "year"):
        found = [count for count in counts if count.by == by]
        assert sum(count.tried for count in found) == len(requested)
        assert sum(count.kept for count in found) == sum(row["reason"] is None for row in requested) > 0
        for name, members in {"transient": TRANSIENT, "policy": POLICY, "image_refused": IMAGE_CHECKS}.items():
            assert sum(getattr(count, name) for count in found) == sum(row["reason"] in members for row in requested)


def test_the_report_counts_the_queries_of_the_run(corpus: Corpus) -> None:
    counts = gather.query_counts(corpus.folder, corpus.snapshot)
    texts = pq.read_table(corpus.folder / "queries" / "queries.parquet")["text"].to_pylist()
    assert [count.text for count in counts] == texts
    after = Counter(texts[q] for ids in rows_of(corpus.snapshot)["query_ids"].to_pylist() for q in ids)
    assert {count.text: count.after for count in counts if count.after} == after
    before = Counter(
        texts[q] for ids in corpus.output("unique").table(CANDIDATES)["query_ids"].to_pylist() for q in ids
    )
    assert {count.text: count.before for count in counts if count.before} == before


@pytest.mark.faults
@pytest.mark.timeout(240)
def test_curating_two_crawls_equals_curating_one_crawl_of_all_inputs(corpus: Corpus, tmp_path: Path) -> None:
    archives = sorted((corpus.folder / "site" / "warc").glob("*.warc.gz"))
    assert len(archives) > 1
    crawls: list[str] = []
    with SiteServer(corpus.folder / "site") as server:
        for half in range(2):
            (tmp_path / f"warc-{half}").mkdir()
            for archive in archives[half::2]:
                shutil.copy(archive, tmp_path / f"warc-{half}")
            job = replace(
                crawl_job(corpus.folder, tmp_path / f"crawl-{half}", server.port),
                input=str(tmp_path / f"warc-{half}"),
                survival=f"{crawls[0]}/survival.parquet" if crawls else None,
            )
            crawl.main(job)
            crawls.append(job.output)
    curate.main(curate_job(crawls, tmp_path / "together", FEW))
    curate.main(curate_job(corpus.folder / "crawl", tmp_path / "at-once", FEW))
    together, at_once = (Snapshot.open(str(tmp_path / name / "dataset")) for name in ("together", "at-once"))
    assert rows_of(together) == rows_of(at_once)
    assert together.query_counts() == at_once.query_counts()
    stages = {record["stage"]: record for record in json.loads((tmp_path / "together" / "funnel.json").read_text())}
    assert stages["addresses"]["dropped"].keys() == {Reason.DUPLICATE_URL}
    assert stages["placed"]["dropped"][Reason.BALANCED_OUT] > 0
    curate.main(curate_job(crawls[::-1], tmp_path / "together", FEW))  # the order of the crawls does not change the run
    assert Snapshot.open(together.uri).name == "v00000001"


@pytest.mark.faults
@pytest.mark.timeout(240)
def test_pictures_of_evaluation_sets_are_marked_or_dropped(corpus: Corpus, tmp_path: Path) -> None:
    """With an encoder too. Its minimum similarity of 1 makes only equal pictures near duplicates."""
    evaluation_rows = rows_of(corpus.snapshot).slice(0, 3)
    names = {"benchmark": ["ours"] * 3, "set_sha256": ["5" * 64] * 3, "split": ["test"] * 3, "item": [0, 1, 2]}
    index = build_index_table(pa.table(names | {"image": evaluation_rows["image"]}), None)
    pq.write_table(index, tmp_path / "index.parquet")
    (tmp_path / "detector").mkdir()
    for name, data in to_files(new_detector(detector_config("tiny"), 0)).items():
        (tmp_path / "detector" / name).write_bytes(data)
    found = {}
    for mode in ("mark", "drop"):
        job = replace(
            curate_job(corpus.folder / "crawl", tmp_path / mode),
            overlap=OverlapConfig(index=str(tmp_path / "index.parquet"), mode=mode, radius=0),
            encoder=EncoderConfig(model=str(tmp_path / "detector")),
            cells=CellsConfig(min_similarity=1.0, num_cells=8),
        )
        curate.main(job)
        found[mode] = Snapshot.open(str(tmp_path / mode / "dataset"))
        overlaps = found[mode].overlaps()
        assert overlaps is not None
        overlap_items = dict(zip(overlaps["pair_id"].to_pylist(), overlaps["item"].to_pylist(), strict=True))
        assert overlap_items == {pair_id: item for item, pair_id in enumerate(evaluation_rows["pair_id"].to_pylist())}
        assert found[mode].metadata["overlap"]["sets"]["ours"]["num_overlapping"] == 3
        assert "| ours | 3 | 100.0% |" in (tmp_path / mode / "dataset" / "cards" / "v00000001.md").read_text()
    assert rows_of(found["mark"]) == rows_of(corpus.snapshot)
    remaining = rows_of(found["drop"])
    assert (
        set(remaining["pair_id"].to_pylist())
        == set(rows_of(corpus.snapshot)["pair_id"].to_pylist()) - overlap_items.keys()
    )
    stages = {record["stage"]: record for record in json.loads((tmp_path / "drop" / "funnel.json").read_text())}
    assert stages["placed"]["dropped"][Reason.OVERLAP] == 3
    assert corpus.snapshot.overlaps() is None


def test_metaclip_mode_computes_no_sketches(corpus: Corpus, tmp_path: Path) -> None:
    curate.main(curate_job(corpus.folder / "crawl", tmp_path / "curate", replace(FEW, mode="metaclip")))
    stages = {record["stage"]: record for record in json.loads((tmp_path / "curate" / "funnel.json").read_text())}
    assert "final_totals" in stages
    assert not stages.keys() & {"final_sketches", "final_limits"}
    assert stages["placed"]["dropped"][Reason.BALANCED_OUT] > 0


@pytest.mark.faults
@pytest.mark.timeout(240)
def test_a_killed_crawl_resumes_to_the_same_snapshot(corpus: Corpus, tmp_path: Path) -> None:
    with SiteServer(corpus.folder / "site") as server:
        job = crawl_job(corpus.folder, tmp_path / "crawl", server.port)
        command = [
            sys.executable,
            "-m",
            "jobs.crawl",
            *(f"--{name}={getattr(job, name)}" for name in ("input", "queries")),
        ]
        command += [f"--output={job.output}", f"--num_buckets={NUM_BUCKETS}", "--session.address=local"]
        command += [
            f"--balance.max_pairs_per_query={BALANCE.max_pairs_per_query}",
            f"--image.image_size={IMAGE.image_size}",
        ]
        command += ["--fetch.min_interval_seconds=0.005", f"--fetch.connect_to={json.dumps(job.fetch.connect_to)}"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ.copy())
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("crawl/unique/_part-*.json")) and time.monotonic() < deadline:
            assert process.poll() is None, "the crawl ended before it could be killed"
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "crawl" / "funnel.json").exists()
        crawl.main(job)
    curate.main(curate_job(tmp_path / "crawl", tmp_path / "curate"))
    again = Snapshot.open(str(tmp_path / "curate" / "dataset"))
    shards, shards_again = ([(s.sha256, s.num_rows) for s in snapshot.shards] for snapshot in (corpus.snapshot, again))
    assert shards_again == shards


@pytest.mark.faults
def test_img2dataset_produces_the_same_images(corpus: Corpus, tmp_path: Path) -> None:
    fetched = corpus.output("fetched").table(FETCHED)
    ours = dict(zip(fetched["url"].to_pylist(), fetched["jpg"].to_pylist(), strict=True))
    refused = {
        row["url"]: row["reason"]
        for part in range(NUM_BUCKETS)
        if (table := corpus.output("fetched").dropped(part, ["url", "reason"])) is not None
        for row in table.to_pylist()
    }
    urls = sorted(url for url in {*ours, *refused} if url.startswith("http"))
    (tmp_path / "urls.txt").write_text("\n".join(urls))
    with SiteServer(corpus.folder / "site") as server:
        environment = os.environ | {
            "http_proxy": f"http://127.0.0.1:{server.port}", "no_proxy": "localhost,127.0.0.1",
            "NO_ALBUMENTATIONS_UPDATE": "1", "WANDB_MODE": "offline",
        }  # fmt: skip
        options = {
            "url_list": tmp_path / "urls.txt", "output_folder": tmp_path / "peer", "output_format": "parquet",
            "image_size": IMAGE.image_size, "resize_mode": IMAGE.resize_mode, "resize_only_if_bigger": True,
            "processes_count": 1, "thread_count": 4, "timeout": 5,
        }  # fmt: skip
        command = [sys.executable, "-m", "img2dataset.main", *(f"--{name}={value}" for name, value in options.items())]
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=200)
    tables = [pq.read_table(file, columns=["url", "jpg", "status"]) for file in (tmp_path / "peer").glob("*.parquet")]
    rows = [row for table in tables for row in table.to_pylist()]
    theirs = {row["url"]: row["jpg"] for row in rows if row["status"] == "success"}
    assert len(theirs) > 200
    differing = [url for url in theirs.keys() & ours.keys() if theirs[url] != ours[url]]
    assert differing == []
    assert {url for url in ours if url.startswith("http")} <= theirs.keys()
    # img2dataset keeps images that sites forbid, decompression bombs, and truncated images, which it fills with grey
    extra = {refused[url] for url in theirs.keys() - ours.keys()}
    assert extra <= {Reason.ROBOTS_TXT, Reason.X_ROBOTS_TAG, Reason.TOO_MANY_PIXELS, Reason.CORRUPT_IMAGE}
