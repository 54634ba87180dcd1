"""The crawler of one actor: candidates in, checked and resized images out, each row with its image or its reason.

Fetching, decoding and waiting go on side by side. An original is in memory only from its first byte until it is
resized; what waits for the decoders holds up the requests that would add to it.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import fields
from itertools import count
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.data.crawl.fetch import FetchConfig, Fetcher
from pipeline.data.crawl.fetch_budget import TURN
from pipeline.data.crawl.politeness import Refused
from pipeline.data.images.decoders import Decoders
from pipeline.data.images.image_header import ImageConfig
from pipeline.data.images.resize import Picture
from pipeline.data.safety.block_lists import NO_LISTS, BlockLists
from pipeline.reasons import Reason, status_of
from pipeline.schemas import FETCHED, conform

_FILLED = tuple(f.name for f in fields(Picture) if f.name in FETCHED.names)
"""The columns of FETCHED that are a Picture's."""
PIECE_ROWS = 256
"""Rows whose images leave memory together: 8 MB of resized ones."""


class Crawler:
    """Fetches, checks and resizes the images of tables, several at once if it is called from several threads.

    Keeps its connections, rules and decoders between calls.
    """

    def __init__(
        self, fetch: FetchConfig, image: ImageConfig, lists: BlockLists = NO_LISTS, *, owns_all: bool = True
    ) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="crawler", daemon=True)
        self._thread.start()
        self._turns = count()
        self._lists = lists
        self._fetcher = Fetcher(fetch, lists.why_not_url, owns_all=owns_all)
        self._decoders = Decoders(image, with_phash=bool(lists.pictures))
        asyncio.run_coroutine_threadsafe(self._decoders.start(), self._loop)  # who needs one that fails is told so

    def __call__(self, table: pa.Table) -> pa.Table:
        """FETCHED from CANDIDATES, row by row.

        A row that is out stays out, and one that holds its image is not asked for. Where the table has a column
        `redirect_url`, a row that has one is asked for there.
        """
        return pa.concat_tables(self.pieces(table))

    def pieces(self, table: pa.Table) -> Iterator[pa.Table]:
        """The same, piece by piece, each as soon as it and all before it are done."""
        turn = next(self._turns)
        pieces = [table.slice(start, PIECE_ROWS) for start in range(0, max(1, table.num_rows), PIECE_ROWS)]
        crawls = [asyncio.run_coroutine_threadsafe(self._crawl(piece, turn), self._loop) for piece in pieces]
        try:
            for piece in pieces:
                done = crawls.pop(0).result()
                yield fetched(piece, [picture for picture, _ in done], [redirect for _, redirect in done])
        finally:
            for crawl in crawls:
                crawl.cancel()

    def close(self) -> None:
        """End all connections and decoders; a second time does nothing."""
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

    async def _crawl(self, table: pa.Table, turn: int) -> list[tuple[Picture, str | None]]:
        TURN.set(turn)
        await self._decoders.start()  # to start one holds the loop up, and pauses between requests are made in it
        columns = {name: table[name].to_pylist() for name in ("url", "reason")}
        redirects = (
            table["redirect_url"].to_pylist() if "redirect_url" in table.column_names else [None] * table.num_rows
        )
        rows = zip(columns["url"], redirects, columns["reason"], table["image"], strict=True)
        done = await asyncio.gather(
            *(self._row(redirect or url, reason, image) for url, redirect, reason, image in rows)
        )
        self._fetcher.hosts.forget()
        return done

    async def _row(self, url: str, reason: str | None, image: pa.Scalar) -> tuple[Picture, str | None]:
        if reason is not None:
            return Picture(reason=Reason(reason)), None
        if image.is_valid:
            return await self._picture(image.as_py()), None
        try:
            data = await self._fetcher.fetch(url)
        except Refused as refusal:
            message = refusal.detail or refusal.reason.value
            return Picture(reason=refusal.reason, error_message=message), refusal.redirect_url
        self._fetcher.capacity.change_waiting(len(data))
        try:
            return await self._picture(data), None
        finally:
            self._fetcher.capacity.change_waiting(-len(data))

    async def _picture(self, data: bytes) -> Picture:
        """What becomes of a file, if no list has it."""
        if self._lists.files:
            sha256 = hashlib.sha256(data).hexdigest()
            if why_not := self._lists.why_not_file(sha256):
                return Picture(reason=why_not, error_message=why_not.value, sha256=sha256)
        picture = await self._decoders(data)
        if picture.phash is not None and (why_not := self._lists.why_not_picture(picture.phash)):
            return Picture(reason=why_not, error_message=why_not.value, sha256=picture.sha256)
        return picture


def fetched(table: pa.Table, pictures: Sequence[Picture], redirects: Sequence[str | None]) -> pa.Table:
    """FETCHED of CANDIDATES and what became of each row."""
    columns: dict[str, Any] = {name: table[name] for name in table.column_names if name in FETCHED.names}
    columns |= {"key": table["pair_id"], "redirect_url": pa.array(redirects, pa.string())}
    columns["status"] = [status_of(picture.reason) for picture in pictures]
    for name in _FILLED:
        values = [getattr(picture, name) for picture in pictures]
        columns[name] = _binary(values) if name == "jpg" else pa.array(values, FETCHED.field(name).type)
    return conform(pa.table(columns), FETCHED)


def _binary(values: Sequence[bytes | None]) -> pa.Array:
    """An array of large_binary, copied once; pa.array copies what it has each time that it grows."""
    data = b"".join(value for value in values if value is not None)
    offsets = np.zeros(len(values) + 1, np.int64)
    np.cumsum([len(value or b"") for value in values], out=offsets[1:])
    present = pa.array([value is not None for value in values], pa.bool_())
    buffers = [present.buffers()[1], pa.py_buffer(offsets), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.large_binary(), len(values), buffers)
