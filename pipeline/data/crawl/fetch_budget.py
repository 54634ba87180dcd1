"""How much one crawler has in hand: requests in flight, and bytes that wait to be decoded."""

from __future__ import annotations

import asyncio
import heapq
from contextvars import ContextVar
from itertools import count

TURN: ContextVar[int] = ContextVar("turn", default=0)
"""Of the table that a request is for: the lowest goes first, so that tables end one after the other."""
_MEMORY = 32
"""Bodies over which the usual size is an average."""


class Capacity:
    """Room for requests. Memory is bounded by what may be in flight and by what may wait for the decoders.

    While decoders have enough to do, a request counts as the bytes that those before it have brought, so that no more
    start than there is room for.
    """

    def __init__(self, max_in_flight: int, max_waiting_bytes: int) -> None:
        self._max_in_flight, self._num_in_flight = max_in_flight, 0
        self._max_bytes, self._num_bytes, self._usual_bytes = max_waiting_bytes, 0, 0.0
        self._room = asyncio.Event()
        self._room.set()
        self._queue: list[tuple[int, int, asyncio.Future[None]]] = []
        self._arrivals = count()

    async def acquire(self) -> None:
        """Until a request may start: of all that wait the one of the lowest TURN, then the one that came first."""
        slot: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._queue, (TURN.get(), next(self._arrivals), slot))
        self._grant()
        try:
            await slot
        except asyncio.CancelledError:
            if not slot.cancelled():
                self.release()
            raise

    def release(self) -> None:
        """A request has ended."""
        self._num_in_flight -= 1
        self._grant()

    async def wait_for_room(self) -> None:
        """Until less waits to be decoded than may."""
        await self._room.wait()

    def change_waiting(self, num_bytes: int) -> None:
        """So many bytes more, or less, wait to be decoded."""
        self._num_bytes += num_bytes
        if num_bytes > 0:
            self._usual_bytes += (num_bytes - self._usual_bytes) / _MEMORY
        if self._num_bytes < self._max_bytes:
            self._room.set()
            self._grant()
        else:
            self._room.clear()

    def _grant(self) -> None:
        if self._num_bytes > self._max_bytes / 4:
            return  # many requests at once cost an event loop less than one at a time
        while self._queue and self._num_in_flight < self._max_in_flight and self._has_room():
            slot = heapq.heappop(self._queue)[-1]
            if not slot.done():
                slot.set_result(None)
                self._num_in_flight += 1

    def _has_room(self) -> bool:
        expected = self._num_bytes + self._num_in_flight * self._usual_bytes
        return expected < self._max_bytes or self._num_bytes == 0  # decoders that have nothing need more requests
