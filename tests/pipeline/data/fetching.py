"""Fetch from the local web server of a test."""

import asyncio
from typing import Any

from pipeline.data.crawl.fetch import FetchConfig, Fetcher
from pipeline.data.crawl.politeness import Refused
from pipeline.data.safety.block_lists import NO_LISTS

A = "http://a.example"


def config(address: str, **options: Any) -> FetchConfig:
    """A configuration that connects to `address` for every host below .example, without pauses."""
    return FetchConfig(**{"connect_to": {"*.example": address}, "min_interval_seconds": 0.0, **options})


def fetched(settings: FetchConfig, *urls: str, owns_all: bool = True) -> list[bytes | Refused]:
    """Fetch all URLs concurrently; returns the bytes or the refusal of each."""

    async def fetch_all() -> list[bytes | Refused]:
        fetcher = Fetcher(settings, NO_LISTS.url_block_reason, owns_all=owns_all)
        try:
            return await asyncio.gather(*(fetch(fetcher, url) for url in urls))
        finally:
            await fetcher.close()

    async def fetch(fetcher: Fetcher, url: str) -> bytes | Refused:
        try:
            return await fetcher.fetch(url)
        except Refused as refusal:
            return refusal

    return asyncio.run(fetch_all())


def refusals(settings: FetchConfig, *urls: str, owns_all: bool = True) -> list[Refused]:
    """The refusals of all URLs; every URL must be refused."""
    results = fetched(settings, *urls, owns_all=owns_all)
    refused = [result for result in results if isinstance(result, Refused)]
    assert len(refused) == len(urls)
    return refused


def outcomes(settings: FetchConfig, *urls: str, owns_all: bool = True) -> list[bytes | str]:
    """The bytes or the reason for refusal of each URL."""
    results = fetched(settings, *urls, owns_all=owns_all)
    return [result.reason if isinstance(result, Refused) else result for result in results]
