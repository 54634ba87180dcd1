"""How much one crawler has in hand: requests in flight, and bytes that wait to be decoded."""

from __future__ import annotations

import asyncio


class Capacity:
    """Room for requests. Memory is bounded by what may be in flight and by what may wait for the decoders."""

    def __init__(self, max_in_flight: int, max_waiting_bytes: int) -> None:
        self._slots = asyncio.Semaphore(max_in_flight)
        self._max_bytes = max_waiting_bytes
        self._num_bytes = 0
        self._room = asyncio.Event()
        self._room.set()

    async def acquire(self) -> None:
        """Until a request may start."""
        await self._slots.acquire()
        await self.wait_for_room()

    def release(self) -> None:
        """A request has ended."""
        self._slots.release()

    async def wait_for_room(self) -> None:
        """Until less waits to be decoded than may."""
        await self._room.wait()

    def change_waiting(self, num_bytes: int) -> None:
        """So many bytes more, or less, wait to be decoded."""
        self._num_bytes += num_bytes
        if self._num_bytes < self._max_bytes:
            self._room.set()
        else:
            self._room.clear()
