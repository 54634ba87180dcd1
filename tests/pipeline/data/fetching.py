"""Fetching from a test's web."""

import asyncio
from typing import Any

from pipeline.data.crawl.fetch import FetchConfig, Fetcher
from pipeline.data.crawl.politeness import Refused
from pipeline.data.safety.block_lists import NO_LISTS

A = "http://a.example"


def config(address: str, **options: Any) -> FetchConfig:
    """Every host below .example is at an address, and may be asked without pauses."""
    return FetchConfig(**{"connect_to": {"*.example": address}, "min_interval_seconds": 0.0, **options})


def fetched(settings: FetchConfig, *urls: str, owns_all: bool = True) -> list[bytes | Refused]:
    """The bytes at each address, or why there are none; asked for side by side."""

    async def fetch_all() -> list[bytes | Refused]:
        fetcher = Fetcher(settings, NO_LISTS.why_not_url, owns_all=owns_all)
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
    """Why there is nothing at any of the addresses."""
    found = [one for one in fetched(settings, *urls, owns_all=owns_all) if isinstance(one, Refused)]
    assert len(found) == len(urls)
    return found


def outcomes(settings: FetchConfig, *urls: str, owns_all: bool = True) -> list[bytes | str]:
    """The bytes at each address, or the reason."""
    found = fetched(settings, *urls, owns_all=owns_all)
    return [one.reason if isinstance(one, Refused) else one for one in found]
