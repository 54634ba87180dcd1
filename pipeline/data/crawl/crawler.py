"""Crawl candidates in one actor: fetch, check and resize images; every row gets an image or a reason.

Fetching, decoding and waiting run concurrently. An original image stays in memory only until it is resized. If too many
originals wait for the decoders, no new request starts.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import fields
from itertools import count
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.data.crawl.fetch import FetchConfig, Fetcher
from pipeline.data.crawl.fetch_budget import TABLE_NUMBER
from pipeline.data.crawl.politeness import Refused
from pipeline.data.images.decoders import Decoders, DecoderStartError
from pipeline.data.images.image_header import ImageConfig
from pipeline.data.images.resize import Picture
from pipeline.data.safety.block_lists import NO_LISTS, BlockLists
from pipeline.printable import message_of, printable
from pipeline.reasons import Reason, img2dataset_status
from pipeline.schemas import FETCHED, conform

logger = logging.getLogger("clip")

_PICTURE_COLUMNS = tuple(f.name for f in fields(Picture) if f.name in FETCHED.names)
"""The columns of FETCHED whose values come from a Picture."""
PIECE_ROWS = 256
"""Rows per piece. The images of a piece are released together: 8 MB of resized images."""


class Crawler:
    """Fetch, check and resize the images of tables. Several threads may call it at once.

    Connections, robots.txt rules and decoders are kept between calls.

    Args:
        fetch: how to fetch.
        image: requirements for images, and how to resize them.
        lists: block lists.
        owns_all: see `Fetcher`.
    """

    def __init__(
        self, fetch: FetchConfig, image: ImageConfig, lists: BlockLists = NO_LISTS, *, owns_all: bool = True
    ) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="crawler", daemon=True)
        self._thread.start()
        self._table_numbers = count()
        self._lists = lists
        self._fetcher = Fetcher(fetch, lists.url_block_reason, owns_all=owns_all)
        self._decoders = Decoders(image, with_phash=bool(lists.pictures))
        # A failed start is not reported here: _crawl starts missing decoders again, and raises if that fails
        asyncio.run_coroutine_threadsafe(self._decoders.start(), self._loop)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Compute FETCHED from CANDIDATES, row by row.

        A row with a reason keeps it and is not fetched. A row that already contains its image is not fetched either. If
        the table has a column `redirect_url`, rows with a value there are requested at that URL.
        """
        return pa.concat_tables(self.pieces(table))

    def pieces(self, table: pa.Table) -> Iterator[pa.Table]:
        """Like `__call__`, but yield each piece as soon as it and all pieces before it are complete."""
        table_number = next(self._table_numbers)
        pieces = [table.slice(start, PIECE_ROWS) for start in range(0, max(1, table.num_rows), PIECE_ROWS)]
        crawls = [asyncio.run_coroutine_threadsafe(self._crawl(piece, table_number), self._loop) for piece in pieces]
        try:
            for piece in pieces:
                results = crawls.pop(0).result()
                yield fetched(piece, [picture for picture, _ in results], [redirect for _, redirect in results])
        finally:
            for crawl in crawls:
                crawl.cancel()

    def close(self) -> None:
        """Close all connections and decoders. A second call has no effect."""
        if not self._loop.is_closed():
            asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def __del__(self) -> None:
        self.close()

    async def _close(self) -> None:
        await self._fetcher.close()
        await self._decoders.close()

    async def _crawl(self, table: pa.Table, table_number: int) -> list[tuple[Picture, str | None]]:
        TABLE_NUMBER.set(table_number)
        await self._decoders.start()  # before any request, because starting a decoder blocks the event loop
        columns = {name: table[name].to_pylist() for name in ("url", "reason")}
        redirects = (
            table["redirect_url"].to_pylist() if "redirect_url" in table.column_names else [None] * table.num_rows
        )
        rows = zip(columns["url"], redirects, columns["reason"], table["image"], strict=True)
        results = await asyncio.gather(
            *(self._row(redirect or url, reason, image) for url, redirect, reason, image in rows)
        )
        self._fetcher.hosts.forget_idle()
        return results

    async def _row(self, url: str, reason: str | None, image: pa.Scalar) -> tuple[Picture, str | None]:
        try:
            return await self._outcome(url, reason, image)
        except DecoderStartError:
            raise
        except Exception as error:  # noqa: BLE001 (a row says what happened, and the job counts such rows)
            message = printable(f"{message_of(error)} ({url})")
            logger.warning("unforeseen: %s", message)
            return Picture(reason=Reason.UNFORESEEN, error_message=message), None

    async def _outcome(self, url: str, reason: str | None, image: pa.Scalar) -> tuple[Picture, str | None]:
        if reason is not None:
            return Picture(reason=Reason(reason)), None
        if image.is_valid:
            return await self._picture(image.as_py()), None
        try:
            data = await self._fetcher.fetch(url)
        except Refused as refusal:
            message = refusal.detail or refusal.reason.value
            return Picture(reason=refusal.reason, error_message=message), refusal.redirect_url
        self._fetcher.budget.change_waiting(len(data))
        try:
            return await self._picture(data), None
        finally:
            self._fetcher.budget.change_waiting(-len(data))

    async def _picture(self, data: bytes) -> Picture:
        """Check a file against the block lists, and decode and resize it."""
        if self._lists.files:
            sha256 = hashlib.sha256(data).hexdigest()
            if reason := self._lists.file_block_reason(sha256):
                return Picture(reason=reason, error_message=reason.value, sha256=sha256)
        picture = await self._decoders(data)
        if picture.phash is not None and (reason := self._lists.picture_block_reason(picture.phash)):
            return Picture(reason=reason, error_message=reason.value, sha256=picture.sha256)
        return picture


def fetched(table: pa.Table, pictures: Sequence[Picture], redirects: Sequence[str | None]) -> pa.Table:
    """Combine CANDIDATES with the picture and the redirect URL of each row into FETCHED."""
    columns: dict[str, Any] = {name: table[name] for name in table.column_names if name in FETCHED.names}
    columns |= {"key": table["pair_id"], "redirect_url": pa.array(redirects, pa.string())}
    columns["status"] = [img2dataset_status(picture.reason) for picture in pictures]
    for name in _PICTURE_COLUMNS:
        values = [getattr(picture, name) for picture in pictures]
        columns[name] = _binary(values) if name == "jpg" else pa.array(values, FETCHED.field(name).type)
    return conform(pa.table(columns), FETCHED)


def _binary(values: Sequence[bytes | None]) -> pa.Array:
    """Build a large_binary array with a single copy; pa.array copies its buffer every time it grows."""
    data = b"".join(value for value in values if value is not None)
    offsets = np.zeros(len(values) + 1, np.int64)
    np.cumsum([len(value or b"") for value in values], out=offsets[1:])
    present = pa.array([value is not None for value in values], pa.bool_())
    buffers = [present.buffers()[1], pa.py_buffer(offsets), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.large_binary(), len(values), buffers)
