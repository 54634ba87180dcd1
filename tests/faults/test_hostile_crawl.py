"""Crawl 3,000 hosts, one in ten of them hostile: the crawl ends, every URL has its reason, nothing good is lost."""

from pathlib import Path

import pytest

from pipeline.reasons import Reason
from tests.perf.crawl.hostile_crawl import HOSTILE_SHARE, NUM_HOSTS, WAYS, crawl, draw_hosts

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]


def test_hostile_hosts_cost_only_their_own_rows(tmp_path: Path) -> None:
    hosts = draw_hosts()
    num_hostile = sum(not drawn.is_good for drawn in hosts.values())
    assert len(WAYS) >= 60
    assert 0.8 * HOSTILE_SHARE < num_hostile / NUM_HOSTS < 1.2 * HOSTILE_SHARE
    crawled = crawl(hosts, tmp_path)
    unexpected = {
        name: (drawn.way, crawled.rows[name]["reason"], crawled.rows[name]["error_message"])
        for name, drawn in hosts.items()
        if crawled.rows[name]["reason"] not in drawn.case.expected
    }
    assert unexpected == {}
    assert Reason.UNFORESEEN not in {row["reason"] for row in crawled.rows.values()}
    assert crawled.seconds < 120
