import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from pipeline.train.reading.batches import Arrays
from pipeline.train.reading.prefetch import ahead, to_device

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")),
]


def arrays_of(step: int) -> Arrays:
    """Random arrays of one step, read-only like the arrays that Ray returns."""
    rng = np.random.default_rng(step)
    arrays: Arrays = {
        "image": rng.integers(0, 256, (5, 3, 8, 8), np.uint8),
        "tokens": rng.integers(0, 100, (5, 7), np.int32),
        "length": rng.integers(2, 8, 5, np.int32),
    }
    for array in arrays.values():
        array.flags.writeable = False
    return arrays


@pytest.mark.parametrize("number", [1, 3])
def test_the_given_number_of_items_is_read_ahead(number: int) -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(10):
            taken.append(item)
            yield item

    received = []
    for item in ahead(items(), number):
        received.append(item)
        num_expected = min(10, item + 1 + number)
        deadline = time.monotonic() + 10
        while len(taken) < num_expected and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.005)  # time for a surplus item to appear
        assert len(taken) == num_expected
    assert received == list(range(10))


def test_an_error_is_raised_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield from (1, 2)
        raise ValueError("damaged")

    received = ahead(items(), 2)
    assert [next(received), next(received)] == [1, 2]
    with pytest.raises(ValueError, match="damaged"):
        next(received)


def test_no_items() -> None:
    assert list(ahead(iter([]), 2)) == []


@pytest.mark.parametrize("device", DEVICES)
def test_batches_hold_the_values_of_the_arrays(device: str) -> None:
    batches = to_device(map(arrays_of, range(20)), torch.device(device))
    for step, batch in enumerate(batches):
        arrays = arrays_of(step)
        for name, tensor in (("image", batch.images), ("tokens", batch.tokens), ("length", batch.lengths)):
            assert tensor.dtype == torch.from_numpy(arrays[name].copy()).dtype
            assert np.array_equal(tensor.cpu().numpy(), arrays[name]), (step, name)
        assert (batch.images.device.type, batch.tokens.device.type, batch.lengths.device.type) == (
            device,
            device,
            "cpu",
        )
    assert step == 19
