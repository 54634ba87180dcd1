import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import curate
from jobs.crawl import CrawlJob, main
from jobs.curate import CurateJob
from jobs.demo.web.server import Route
from jobs.options.inputs import read_queries, read_survival
from jobs.options.launch import launch
from pipeline.reasons import POLICY, Reason
from pipeline.schemas import QUERIES, SURVIVAL
from tests.crawls import Crawl, crawl_of
from tests.web import Answer, Web, picture, web

pytestmark = pytest.mark.faults


def test_a_table_with_wrong_columns_is_refused(tmp_path: Path) -> None:
    queries, survival = str(tmp_path / "queries.parquet"), str(tmp_path / "survival.parquet")
    pq.write_table(pa.table([[1, 0], ["b", "a"], ["u", "u"], [1.0, 2.0], [1, 0]], schema=QUERIES), queries)
    pq.write_table(pa.table([["a"], [3], [2]], schema=SURVIVAL), survival)
    assert read_queries(queries)["text"].to_pylist() == ["a", "b"]
    assert read_survival(survival).to_pylist() == [{"text": "a", "tried": 3, "kept": 2}]
    message = r"survival=.*queries\.parquet: .* columns \['kept', 'tried'\] are missing; .*jobs.crawl"
    with pytest.raises(ValueError, match=message):
        read_survival(queries)
    with pytest.raises(ValueError, match=r"queries=.*not a query list.* make one with jobs.queries"):
        read_queries(survival)


MOVED = {"Location": "http://g.example/moved.jpg"}
ALLOWED = b"User-agent: *\nDisallow: /none"
URLS = [
    *(f"http://a.example/{number}.jpg" for number in range(3)),
    "http://b.example/busy.jpg",
    "http://b.example/reset.jpg",
    "http://c.example/gone.jpg",
    "http://c.example/none.jpg",
    "http://d.example/forbidden.jpg",
    "http://e.example/noai.jpg",
    "http://f.example/moved.jpg",
    "http://h.example/loop.jpg",
]
PICTURES: dict[str, Answer] = {url: picture(number) for number, url in enumerate(URLS)}
FIRST: dict[str, Answer] = PICTURES | {
    "http://b.example/busy.jpg": Route(status=503),
    "http://b.example/reset.jpg": Route(fault="reset"),
    "http://c.example/gone.jpg": Route(status=410),
    "http://c.example/none.jpg": Route(status=404),
    "http://d.example/robots.txt": b"User-agent: *\nDisallow: /forbidden",
    "http://e.example/noai.jpg": (picture(8), Route(headers={"X-Robots-Tag": "noai"})),
    "http://f.example/moved.jpg": Route(status=301, headers=MOVED),
    "http://g.example/moved.jpg": picture(9),
    "http://h.example/loop.jpg": Route(status=302, headers={"Location": "http://i.example/loop.jpg"}),
    "http://i.example/loop.jpg": Route(status=302, headers={"Location": "http://h.example/loop.jpg"}),
}
LATER = FIRST | {
    "http://b.example/busy.jpg": (picture(3), Route(delay_seconds=1.0)),
    "http://b.example/reset.jpg": picture(4),
    "http://c.example/gone.jpg": picture(5),
    "http://d.example/robots.txt": ALLOWED,
}
"""The answers when the crawl is run again."""
TRANSIENT = ["http://b.example/busy.jpg", "http://b.example/reset.jpg"]
FIRST_REASONS: dict[str, str | None] = {
    **dict.fromkeys(URLS[:3]),
    "http://b.example/busy.jpg": Reason.SERVER_ERROR,
    "http://b.example/reset.jpg": Reason.CONNECTION,
    "http://c.example/gone.jpg": Reason.NOT_FOUND,
    "http://c.example/none.jpg": Reason.NOT_FOUND,
    "http://d.example/forbidden.jpg": Reason.ROBOTS_TXT,
    "http://e.example/noai.jpg": Reason.X_ROBOTS_TAG,
    "http://f.example/moved.jpg": None,
    "http://h.example/loop.jpg": Reason.TOO_MANY_REDIRECTS,
}
OPTIONS = (
    "--num_fetch_parts=3",
    "--fetch_pool.size=2",
    "--fetch_pool.cpus=0.5",
    "--fetch.min_interval_seconds=0",
    "--fetch.attempts=1",
    "--fetch.max_redirects=2",
)

ONE_CRAWLER = "--fetch_pool.size=1"
"""A single crawler handles all domains, so it follows all redirects itself."""


class State(NamedTuple):
    """The results of a run, and its requests."""

    rows: dict[str, dict[str, Any]]
    files: list[str]
    """The Parquet files in fetched/."""
    funnel: dict[str, Any]
    survival: list[dict[str, Any]]
    link_rot: list[dict[str, Any]]
    requested: list[str]
    """Requested URLs, without robots.txt."""
    rounds: list[str]


def state(crawl: Crawl, site: Web) -> State:
    folder = crawl.folder
    return State(
        crawl.rows(),
        sorted(file.name for file in (folder / "fetched").glob("*.parquet")),
        {record["stage"]: record for record in json.loads((folder / "funnel.json").read_text())},
        pq.read_table(folder / "survival.parquet").to_pylist(),
        pq.read_table(folder / "link_rot.parquet").to_pylist(),
        sorted(f"http://{entry.host}{entry.path}" for entry in site.log if entry.path != "/robots.txt"),
        [json.loads(file.read_text()) for file in sorted(folder.glob("attempts-*.json"))],
    )


class CrawlStates(NamedTuple):
    """The states of one crawl after its first run and after each rerun."""

    crawl: Crawl
    first: State
    copy: Crawl
    """A copy of the crawl after its first run."""
    transient: State
    idle: State
    permanent: State
    policy: State
    refusal: str
    """The error of a curation of the first state that is rerun after the crawl has changed."""


@pytest.fixture(scope="module")
def states(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> CrawlStates:  # noqa: ARG001
    folder = tmp_path_factory.mktemp("crawl")
    crawl = crawl_of(folder, URLS, *OPTIONS)
    with web(folder / "first", FIRST) as site:
        crawl.run(site)
        first = state(crawl, site)
    curation = CurateJob(crawl=str(crawl.folder), output=str(folder / "curate"), num_buckets=1)
    curate.main(curation)
    copy = replace(crawl, folder=folder / "copy")
    shutil.copytree(crawl.folder, copy.folder)
    later = []
    for more in (("--retry=transient",), (), ("--retry=permanent",), ("--retry=policy",)):
        with web(folder / "later", LATER) as site:
            crawl.run(site, ONE_CRAWLER, *more)
            later.append(state(crawl, site))
    with pytest.raises(ValueError, match="curate holds a run of another configuration") as refusal:
        curate.main(curation)
    transient, idle, permanent, policy = later
    return CrawlStates(crawl, first, copy, transient, idle, permanent, policy, str(refusal.value))


def kept(state: State) -> dict[str, bytes]:
    return {url: row["jpg"] for url, row in state.rows.items() if row["reason"] is None}


def reasons(state: State) -> dict[str, str | None]:
    return {url: row["reason"] for url, row in state.rows.items()}


def test_every_url_ends_as_an_image_or_a_reason(states: CrawlStates) -> None:
    assert reasons(states.first) == FIRST_REASONS
    assert {url: row["jpg"] is not None for url, row in states.first.rows.items()} == {
        url: reason is None for url, reason in FIRST_REASONS.items()
    }


def test_redirects_to_other_domains_are_followed_and_loops_end(states: CrawlStates) -> None:
    """As within one domain, at most `max_redirects` redirects are followed, with one request more than that."""
    assert states.first.rounds == ["moved", "moved"]
    assert states.first.requested.count("http://f.example/moved.jpg") == 1
    assert states.first.requested.count("http://g.example/moved.jpg") == 1
    assert states.first.requested.count("http://h.example/loop.jpg") == 2
    assert states.first.requested.count("http://i.example/loop.jpg") == 1
    assert states.first.rows["http://h.example/loop.jpg"]["error_message"] == Reason.TOO_MANY_REDIRECTS.value
    assert {row["redirect_url"] for row in states.first.rows.values()} == {None}


def test_a_transient_retry_requests_only_transient_failures(states: CrawlStates) -> None:
    assert states.transient.requested == TRANSIENT
    assert reasons(states.transient) == FIRST_REASONS | dict.fromkeys(TRANSIENT)
    before = {url: row for url, row in states.first.rows.items() if url not in TRANSIENT}
    assert {url: row for url, row in states.transient.rows.items() if url not in TRANSIENT} == before
    new = set(states.transient.files) - set(states.first.files)
    assert len(states.transient.files) == len(states.first.files), "the replaced files are deleted"
    assert len(new) == 1, "both URLs have the same domain, so they are in one part"


def test_funnel_survival_and_link_rot_count_the_last_attempt(states: CrawlStates) -> None:
    for state in (states.first, states.transient, states.permanent, states.policy):
        out = Counter(row["reason"] for row in state.rows.values() if row["reason"])
        assert state.funnel["fetched"]["dropped"] == out
        assert state.funnel["fetched"]["kept"] == len(URLS) - out.total()
        assert state.survival == [{"text": "circle", "tried": len(URLS), "kept": len(URLS) - out.total()}]
        by_host = {row["name"]: row["kept"] for row in state.link_rot if row["by"] == "host"}
        hosts = Counter({urlsplit(url).hostname: 0 for url in URLS})
        hosts.update(urlsplit(url).hostname for url in kept(state))
        assert by_host == hosts


def test_a_rerun_of_a_finished_crawl_sends_no_requests(states: CrawlStates) -> None:
    assert states.idle.requested == []
    assert states.idle.rows == states.transient.rows
    assert states.idle.files == states.transient.files


def test_each_retry_requests_the_failures_of_its_class(states: CrawlStates) -> None:
    gone, none = "http://c.example/gone.jpg", "http://c.example/none.jpg"
    assert states.permanent.requested == [gone, none]
    assert reasons(states.permanent) == reasons(states.idle) | {gone: None}
    policy = {url for url, reason in FIRST_REASONS.items() if reason in POLICY}
    assert set(states.policy.requested) == policy | {"http://i.example/loop.jpg"}
    assert reasons(states.policy) == reasons(states.permanent) | {"http://d.example/forbidden.jpg": None}
    assert states.policy.rounds == ["moved", "moved", "transient", "permanent", "policy"]


def test_a_killed_retry_is_resumed(states: CrawlStates, tmp_path: Path) -> None:
    """A retry that is killed while fetching and run again with the same option continues the same round."""
    with web(tmp_path / "web", LATER) as site:
        with states.copy.driver(site, ONE_CRAWLER, "--retry=transient") as driver:
            driver.wait_until(lambda: "/busy.jpg" in site.paths("b.example"))
            driver.kill()
        states.copy.run(site, ONE_CRAWLER, "--retry=transient")
        found = state(states.copy, site)
    assert found.rounds == states.transient.rounds
    assert found.rows == states.transient.rows
    assert found.files == states.transient.files
    assert set(found.requested) == set(TRANSIENT)


def test_a_curation_is_not_resumed_after_a_retry_changed_the_crawl(states: CrawlStates) -> None:
    assert re.search(r"it differs in crawl: \[\"\w{16}\.2\"\] recorded, \[\"\w{16}\.\d\"\] requested", states.refusal)


@pytest.mark.usefixtures("ray_local")
def test_a_crawl_without_a_query_list_gives_images_but_cannot_be_curated(tmp_path: Path) -> None:
    crawl = crawl_of(tmp_path, URLS[:2], "--num_buckets=1", "--fetch.min_interval_seconds=0")
    with web(tmp_path / "site", {URLS[0]: picture(1), URLS[1]: picture(2)}) as site:
        launch(CrawlJob, main, [option for option in crawl.arguments(site) if "queries" not in option])
    assert crawl.reasons() == dict.fromkeys(URLS[:2])
    with pytest.raises(ValueError, match="was made without a query list, which balancing needs"):
        curate.read_crawls(str(crawl.folder))
