import asyncio
from collections.abc import Sequence

from pipeline.data.crawl.fetch_budget import TURN, Capacity


async def settle() -> None:
    """Until all tasks wait for something else than their turn in the loop."""
    for _ in range(5):
        await asyncio.sleep(0)


async def ask(capacity: Capacity, turn: int, started: list[int]) -> None:
    TURN.set(turn)
    await capacity.acquire()
    started.append(turn)


def test_the_table_that_came_first_goes_first() -> None:
    async def run() -> list[int]:
        capacity, started = Capacity(1, 100), list[int]()
        await capacity.acquire()
        tasks = [asyncio.create_task(ask(capacity, turn, started)) for turn in (2, 1, 2, 0)]
        await settle()
        assert started == []
        for _ in tasks:
            capacity.release()
            await settle()
        return started

    assert asyncio.run(run()) == [0, 1, 2, 2]


def started_of(waiting: Sequence[int], num_asking: int, max_in_flight: int = 8, max_bytes: int = 100) -> int:
    """How many of so many requests start while bodies of these sizes wait to be decoded."""

    async def run() -> int:
        capacity, started = Capacity(max_in_flight, max_bytes), list[int]()
        for num_bytes in waiting:
            capacity.change_waiting(num_bytes)
        tasks = [asyncio.create_task(ask(capacity, 0, started)) for _ in range(num_asking)]
        await settle()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return len(started)

    return asyncio.run(run())


def test_idle_decoders_let_all_requests_start() -> None:
    assert started_of([], 20) == 8
    assert started_of([50, -50] * 100, 20) == 8  # however large bodies usually are


def test_busy_decoders_let_as_many_start_as_there_is_room_for() -> None:
    assert started_of([100], 20) == 0
    assert started_of([26], 20) == 0
    usual_20 = [20, -20] * 500
    assert started_of([*usual_20, 20], 20, max_bytes=110) == 5


def test_a_request_that_is_given_up_takes_nobodys_place() -> None:
    async def run() -> list[int]:
        capacity, started = Capacity(1, 100), list[int]()
        await capacity.acquire()
        given_up, granted, last = (asyncio.create_task(ask(capacity, turn, started)) for turn in (0, 1, 2))
        await settle()
        given_up.cancel()
        await settle()
        capacity.release()
        granted.cancel()  # it has been given its place, but does not know yet
        await settle()
        await last
        return started

    assert asyncio.run(run()) == [2]
