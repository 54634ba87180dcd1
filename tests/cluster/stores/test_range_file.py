"""Files over ranges: every read gives its bytes, from any number of threads at once."""

import io
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from cluster.stores.range_file import RangeFile

DATA = os.urandom(100_000)


@given(st.lists(st.tuples(st.sampled_from(["seek", "read", "end"]), st.integers(0, 120_000)), max_size=12))
def test_a_range_file_reads_as_a_file_in_memory_does(steps: list[tuple[str, int]]) -> None:
    ranged, whole = RangeFile(len(DATA), lambda start, stop: DATA[start:stop]), io.BytesIO(DATA)
    for step, number in steps:
        if step == "read":
            assert ranged.read(number) == whole.read(number)
        else:
            whence = io.SEEK_SET if step == "seek" else io.SEEK_END
            offset = number if step == "seek" else -min(number, len(DATA))
            assert ranged.seek(offset, whence) == whole.seek(offset, whence)
        assert ranged.tell() == whole.tell()
    assert ranged.read() == whole.read()


class Interrupted(RangeFile):
    """Other threads run after each seek, as they may at any time."""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position = super().seek(offset, whence)
        time.sleep(0.0002)
        return position


def test_threads_that_share_a_file_read_their_own_ranges() -> None:
    """pyarrow asks for the size by a seek to the end and another back, without the lock of its reads."""
    together = threading.Barrier(8)
    file = pa.PythonFile(Interrupted(len(DATA), lambda start, stop: DATA[start:stop]), mode="r")

    def read(thread: int) -> bool:
        together.wait()
        starts = [(7919 * (thread + 8 * number)) % 99_000 for number in range(60)]
        return all(
            file.size() == len(DATA) and file.read_at(100, start) == DATA[start : start + 100] for start in starts
        )

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(read, range(8)))


def test_a_range_is_one_request() -> None:
    asked: list[tuple[int, int]] = []

    def read_range(start: int, stop: int) -> bytes:
        asked.append((start, stop))
        return DATA[start:stop]

    file = RangeFile(len(DATA), read_range)
    file.seek(50_000)
    buffer = bytearray(60_000)
    assert file.readinto(buffer) == 50_000
    assert bytes(buffer[:50_000]) == DATA[50_000:]
    assert asked == [(50_000, 100_000)]
