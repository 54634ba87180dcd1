"""Limit the memory of one crawler: requests in flight, and bytes that wait to be decoded."""

from __future__ import annotations

import asyncio
import heapq
from contextvars import ContextVar
from itertools import count

TABLE_NUMBER: ContextVar[int] = ContextVar("table_number", default=0)
"""Number of the table that a request belongs to. Lower numbers start first, so that tables finish in order."""
_AVERAGED_BODIES = 32
"""Number of recent bodies that the moving average of body sizes covers."""


class FetchBudget:
    """Decide when requests may start, to bound the bytes in flight and the bytes that wait for the decoders.

    While the decoders are busy, each request in flight counts as the average size of recent bodies, so that the bodies
    to come fit as well.
    """

    def __init__(self, max_in_flight: int, max_waiting_bytes: int) -> None:
        self._max_in_flight, self._num_in_flight = max_in_flight, 0
        self._max_bytes, self._num_bytes, self._average_bytes = max_waiting_bytes, 0, 0.0
        self._room = asyncio.Event()
        self._room.set()
        self._queue: list[tuple[int, int, asyncio.Future[None]]] = []
        self._arrivals = count()

    async def acquire(self) -> None:
        """Wait until a request may start. The lowest TABLE_NUMBER starts first, then the earliest caller."""
        slot: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._queue, (TABLE_NUMBER.get(), next(self._arrivals), slot))
        self._grant()
        try:
            await slot
        except asyncio.CancelledError:
            if not slot.cancelled():
                self.release()
            raise

    def release(self) -> None:
        """Report that a request has ended."""
        self._num_in_flight -= 1
        self._grant()

    async def wait_for_room(self) -> None:
        """Wait until fewer bytes than the maximum wait to be decoded."""
        await self._room.wait()

    def change_waiting(self, num_bytes: int) -> None:
        """Report that `num_bytes` more (or fewer, if negative) bytes wait to be decoded."""
        self._num_bytes += num_bytes
        if num_bytes > 0:
            self._average_bytes += (num_bytes - self._average_bytes) / _AVERAGED_BODIES
        if self._num_bytes < self._max_bytes:
            self._room.set()
            self._grant()
        else:
            self._room.clear()

    def _grant(self) -> None:
        if self._num_bytes > self._max_bytes / 4:
            return  # starting many requests at once costs the event loop less than starting them one by one
        while self._queue and self._num_in_flight < self._max_in_flight and self._has_room():
            slot = heapq.heappop(self._queue)[-1]
            if not slot.done():
                slot.set_result(None)
                self._num_in_flight += 1

    def _has_room(self) -> bool:
        expected = self._num_bytes + self._num_in_flight * self._average_bytes
        return expected < self._max_bytes or self._num_bytes == 0  # idle decoders need more requests
