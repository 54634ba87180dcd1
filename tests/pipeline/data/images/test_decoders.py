import asyncio
import gc
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.images import decoders
from pipeline.data.images.decoders import Decoders, DecoderStartError
from pipeline.data.images.image_header import ImageConfig
from pipeline.data.images.resize import ImageProcessor, Picture
from pipeline.reasons import Reason
from tests.pipeline.data.rows import encode, photo_like

IMAGES = [encode(photo_like(seed, 100 + seed, 80), "JPEG") for seed in range(12)]
HOSTILE = """
import os, time
from pipeline.data.images import decoders
from pipeline.data.images.resize import ImageProcessor, Picture

class Hostile(ImageProcessor):
    def __call__(self, data):
        if data == b"crash": os.kill(os.getpid(), 11)
        if data == b"hang": time.sleep(600)
        if os.path.isfile(data[:4096]):
            os.remove(data)
            os.kill(os.getpid(), 9)
        if data == b"eat": return Picture(error_message=str(len(bytearray(3 << 30))))
        if data == b"print": print("this is no answer", flush=True)
        if data == b"lie": os.write(lies, b"\\5\\0\\0\\0\\0\\0\\0\\0[1,2]")
        if data[:4] == b"set ": return Picture(**eval(data[4:]))
        if data[:6] == b"raise ": raise eval(data[6:])
        if data == b"who": return Picture(error_message=" ".join(sorted(os.environ)))
        return super().__call__(data)

decoders.ImageProcessor = Hostile
lies = os.dup(1)
decoders.main()
"""


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make children misbehave on certain images, as a bug in native decoder code would."""
    monkeypatch.setattr(decoders, "_CHILD", HOSTILE)


def process(images: Sequence[bytes], **options: Any) -> list[Picture]:
    async def process_all() -> list[Picture]:
        pool = Decoders(ImageConfig(**options))
        try:
            return await asyncio.gather(*(pool(image) for image in images))
        finally:
            await pool.close()

    return asyncio.run(process_all())


@pytest.mark.parametrize("num_decoders", [1, 3])
def test_results_equal_those_of_the_processor(num_decoders: int) -> None:
    bad = [b"", b"no image", IMAGES[0][:500], encode(photo_like(0, 600, 20))]
    images = [*IMAGES, *bad, encode(photo_like(1, 3000, 2000), "BMP")]  # 18 MB, far more than a pipe buffers
    processor = ImageProcessor(ImageConfig())
    assert process(images, num_decoders=num_decoders) == [processor(image) for image in images]


@pytest.mark.usefixtures("hostile")
class TestFaults:
    """A faulty image costs one row; the results of all other images are unchanged."""

    def test_a_crash(self) -> None:
        found = process([*IMAGES[:3], b"crash", *IMAGES[3:6], b"crash", b"crash", *IMAGES[6:]], num_decoders=2)
        crashed = [picture for picture in found if picture.reason is Reason.DECODER_DIED]
        assert [picture.error_message for picture in crashed] == ["decoder died of the image (exit status -11)"] * 3
        processor = ImageProcessor(ImageConfig())
        assert [picture for picture in found if picture not in crashed] == [processor(image) for image in IMAGES]

    def test_an_image_is_not_blamed_for_the_first_killed_child(self, tmp_path: Path) -> None:
        (tmp_path / "once").touch()
        once, *others = process([str(tmp_path / "once").encode(), *IMAGES], num_decoders=1)
        assert once.reason is Reason.NOT_AN_IMAGE, "the image is decoded by the next child"
        assert [picture.reason for picture in others] == [None] * len(IMAGES)

    def test_an_image_that_never_finishes(self) -> None:
        started = time.monotonic()
        found = process([b"hang", *IMAGES], num_decoders=1, decoder_timeout_seconds=0.5)
        assert [picture.reason for picture in found] == [Reason.DECODER_TIMEOUT, *[None] * len(IMAGES)]
        assert time.monotonic() - started < 10

    def test_an_image_that_exhausts_memory(self) -> None:
        (picture, other) = process([b"eat", IMAGES[0]], num_decoders=1, decoder_memory_gib=1.0)
        assert picture.reason is Reason.DECODER_DIED
        assert other.reason is None

    def test_a_malformed_result(self) -> None:
        lie, other = process([b"lie", IMAGES[0]], num_decoders=1)
        assert (lie.reason, other.reason) == (Reason.DECODER_DIED, None)

    @pytest.mark.parametrize(
        "values",
        [
            "width='5'",
            "width=-1",
            "width=2**31",
            "width=True",
            "phash=2**64",
            "exif=5",
            "exif='\\ud800'",
            "exif={}",
            "sha256=[1]",
            "reason='no reason'",
        ],
    )
    def test_values_that_no_column_can_store(self, values: str) -> None:
        lie, other = process([f"set dict({values})".encode(), IMAGES[0]], num_decoders=1)
        assert (lie.reason, other.reason) == (Reason.DECODER_DIED, None)

    @pytest.mark.parametrize(
        "error",
        [
            "KeyError('\\ud800')",
            "AssertionError()",
            "RecursionError()",
            "StopIteration(1)",
            "type('New', (Exception,), {})(9)",
        ],
    )
    def test_an_unforeseen_exception_ends_no_child(self, error: str) -> None:
        raised, other = process([f"raise {error}".encode(), IMAGES[0]], num_decoders=1)
        assert (raised.reason, other.reason) == (Reason.CORRUPT_IMAGE, None)
        assert (raised.error_message or "").isprintable()
        assert raised.sha256 == hashlib.sha256(f"raise {error}".encode()).hexdigest()

    def test_an_answer_that_is_no_json_ends_no_child(self) -> None:
        raised, other = process([b"set dict(exif=b'bytes')", IMAGES[0]], num_decoders=1)
        assert (raised.reason, other.reason) == (Reason.CORRUPT_IMAGE, None)

    def test_output_of_libraries_does_not_mix_with_results(self) -> None:
        printed, other = process([b"print", IMAGES[0]], num_decoders=1)
        assert (printed.reason, other.reason) == (Reason.NOT_AN_IMAGE, None)

    def test_a_child_inherits_no_secrets(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        (picture,) = process([b"who"], num_decoders=1)
        names = set((picture.error_message or "").split())
        assert "PYTHONPATH" in names
        assert "AWS_SECRET_ACCESS_KEY" not in names


def test_exceeding_the_memory_limit_gives_a_reason() -> None:
    """Allocation fails in the decoder, and the child survives."""
    large = encode(photo_like(0, 6000, 4000), "JPEG")
    refused, other = process([large, IMAGES[0]], num_decoders=1, decoder_memory_gib=0.02)
    assert refused.reason in {Reason.RESIZE_FAILED, Reason.CORRUPT_IMAGE}
    assert other.reason is None


def test_children_end_with_their_parent() -> None:
    async def pids() -> list[int]:
        pool = Decoders(ImageConfig(num_decoders=2))
        await asyncio.gather(*(pool(image) for image in IMAGES))
        found = [child._process.pid for child in pool._children if child._process]
        await pool.close()
        return found

    found = asyncio.run(pids())
    assert len(found) == 2
    for pid in found:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


class TestCancellation:
    """A cancelled image costs no other image anything."""

    @pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8])
    def test_the_other_images_of_the_child_are_decoded(self, turns: int) -> None:
        """Cancelled while it waits for the child, while it is written, or while the child decodes it."""

        async def cancel() -> list[Picture | BaseException]:
            pool = Decoders(ImageConfig(num_decoders=1))
            await pool.start()
            tasks = [asyncio.create_task(pool(image)) for image in images]
            for _ in range(turns):
                await asyncio.sleep(0)
            for index in (0, 3):
                tasks[index].cancel()
            try:
                async with asyncio.timeout(30):
                    found = await asyncio.gather(*tasks, return_exceptions=True)
                    return [*found, await pool(IMAGES[0])]
            finally:
                await pool.close()

        images = [*IMAGES[:3], encode(photo_like(1, 3000, 2000), "BMP"), *IMAGES[3:6]]
        found = asyncio.run(cancel())
        assert isinstance(found[3], asyncio.CancelledError)
        others = [picture for index, picture in enumerate(found) if index not in (0, 3)]
        assert [isinstance(picture, Picture) and picture.reason is None for picture in others] == [True] * 6

    @pytest.mark.usefixtures("hostile")
    def test_a_cancelled_image_that_kills_the_child_is_not_blamed_on_others(self) -> None:
        async def cancel() -> list[Picture | BaseException]:
            pool = Decoders(ImageConfig(num_decoders=1, decoder_timeout_seconds=1.0))
            await pool.start()
            tasks = [asyncio.create_task(pool(image)) for image in (b"hang", b"crash", *IMAGES[:3])]
            await asyncio.sleep(0.1)
            tasks[0].cancel()
            tasks[1].cancel()
            try:
                async with asyncio.timeout(30):
                    return await asyncio.gather(*tasks[2:], return_exceptions=True)
            finally:
                await pool.close()

        found = asyncio.run(cancel())
        assert [isinstance(picture, Picture) and picture.reason is None for picture in found] == [True] * 3

    @pytest.mark.parametrize("code", ["raise SystemExit(7)", "import time; time.sleep(600)"])
    @pytest.mark.parametrize("seconds", [0.0, 0.003, 0.05])
    def test_no_child_is_left_when_images_are_cancelled_during_its_start(
        self, code: str, seconds: float, monkeypatch: pytest.MonkeyPatch, started: list[subprocess.Popen[bytes]]
    ) -> None:
        """asyncio.run cancels what still runs (python/cpython#103847, #125502 and #133536: it then hung for ever)."""

        async def leave() -> None:
            pool = Decoders(ImageConfig(num_decoders=2))
            tasks = [asyncio.create_task(pool(image)) for image in IMAGES[:4]]
            await asyncio.sleep(seconds)
            tasks[0].cancel()

        monkeypatch.setattr(decoders, "_CHILD", code)
        asyncio.run(leave())
        assert [popen.returncode is None for popen in started] == [False] * len(started)

    def test_a_pool_may_be_closed_while_its_children_start(self, started: list[subprocess.Popen[bytes]]) -> None:
        async def close() -> None:
            pool = Decoders(ImageConfig(num_decoders=2))
            starting = asyncio.create_task(pool.start())
            await asyncio.sleep(0.05)
            await pool.close()
            await starting

        asyncio.run(close())
        assert [popen.returncode for popen in started] == [-9, -9]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """The processes that are started during the test."""
    processes: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def record(*args: Any, **options: Any) -> subprocess.Popen[bytes]:
        processes.append(start(*args, **options))
        return processes[-1]

    monkeypatch.setattr(subprocess, "Popen", record)
    return processes


def test_a_failed_start_reaches_every_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first error ends asyncio.run, while the children of the other images are still starting."""
    monkeypatch.setattr(decoders, "_CHILD", "raise SystemExit(7)")
    with pytest.raises(DecoderStartError, match=r"a decoder process did not start \(exit status 7\)"):
        process(IMAGES, num_decoders=4)


def test_a_program_that_is_missing_is_a_failed_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/missing/python")
    with pytest.raises(DecoderStartError, match=r"a decoder process did not start .*/missing/python"):
        process(IMAGES[:1])


def test_a_failed_start_raises_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "_CHILD", "raise SystemExit(7)")
    with pytest.raises(RuntimeError, match=r"a decoder process did not start \(exit status 7\)"):
        process(IMAGES[:1])


def test_a_start_that_nobody_awaits_is_not_collected_as_garbage(capfd: pytest.CaptureFixture[str]) -> None:
    """asyncio holds tasks weakly (python/cpython#91887), and the protocol of a pipe holds its reader weakly."""

    async def start() -> int:
        pool = Decoders(ImageConfig(num_decoders=1))
        asyncio.get_running_loop().create_task(pool.start())
        started = time.monotonic()
        while pool._children[0]._process is None and time.monotonic() < started + 30:
            gc.collect()
            await asyncio.sleep(0.01)
        process = pool._children[0]._process
        await pool.close()
        assert process is not None
        return process.pid

    assert asyncio.run(start())
    assert "destroyed" not in capfd.readouterr().err
