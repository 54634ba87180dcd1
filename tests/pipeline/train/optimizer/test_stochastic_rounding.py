"""Tests that stochastic rounding is unbiased, rounds to neighbours, and does not depend on sharding."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.train.optimizer.stochastic_rounding import BLOCK, random_bits, round_, table_offsets

CPU = torch.device("cpu")
LARGEST = torch.finfo(torch.bfloat16).max


def rounded(values: Tensor, bits: Tensor) -> Tensor:
    copy = values.clone()
    round_(copy, bits)
    return copy


def neighbours(value: float) -> tuple[float, float]:
    """The bfloat16 neighbours of a float32, towards zero and away from zero; equal if it is a bfloat16 number."""
    pattern = np.float32(value).view(np.uint32)
    towards = pattern & np.uint32(0xFFFF0000)
    away = towards if towards == pattern else towards + np.uint32(0x10000)
    return float(towards.view(np.float32)), float(away.view(np.float32))


FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(FINITE, st.integers(0, 65535))
def test_a_value_becomes_one_of_its_neighbours(value: float, bits: int) -> None:
    actual = rounded(torch.tensor([value]), torch.tensor([bits], dtype=torch.int32))
    assert actual.item() in neighbours(value)
    assert torch.equal(actual.bfloat16().float(), actual)


@given(FINITE.filter(lambda value: abs(value) <= LARGEST))
def test_the_mean_over_all_bits_is_the_value(value: float) -> None:
    """The mean is exact: k of the 65,536 roundings go up if the value is k/65,536 of the way to the upper neighbour."""
    bits = torch.arange(65536, dtype=torch.int32)
    actual = rounded(torch.full((65536,), value), bits)
    assert actual.double().mean().item() == value


@pytest.mark.parametrize("bits", [0, 1, 65535])
def test_bfloat16_numbers_and_infinities_do_not_change(bits: int) -> None:
    finite = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    finite = finite[finite.isfinite()].float()
    values = torch.cat([finite, torch.tensor([torch.inf, -torch.inf])])
    assert torch.equal(rounded(values, torch.full((len(values),), bits, dtype=torch.int32)), values)


def test_nan_remains_nan() -> None:
    """This covers the NaN of the CPU, with either sign, and that of CUDA."""
    values = torch.tensor([0x7FC00000, -0x400000, 0x7FFFFFFF], dtype=torch.int32).view(torch.float32)
    assert values.isnan().all()
    assert rounded(values, torch.full((3,), 65535, dtype=torch.int32)).bfloat16().isnan().all()


def test_the_table_contains_every_number_equally_often() -> None:
    counts = torch.bincount(random_bits(0, 0, 0, BLOCK, CPU))
    assert torch.equal(counts, torch.full((65536,), BLOCK // 65536))


@pytest.mark.parametrize("stream", [0, 1, 2])
def test_bits_do_not_depend_on_how_a_parameter_is_split(stream: int) -> None:
    offset, first, count = 1_048_570, BLOCK + 5, 1000  # passes the end of the table
    whole = random_bits(offset, stream, first, count, CPU)
    parts = [random_bits(offset, stream, first + start, 100, CPU) for start in range(0, count, 100)]
    assert torch.equal(torch.cat(parts), whole)


def standardized_bits(steps: range, number: int, stream: int, first: int) -> Tensor:
    """The bits of 100 elements in each step, scaled to mean 0 and variance 1."""
    bits = [random_bits(table_offsets(7, step, 4)[number], stream, first, 100, CPU) for step in steps]
    return (torch.stack(bits).double() - 32767.5) / (65536 / 12**0.5)


def test_bits_are_uniform_and_independent_over_steps() -> None:
    """Means and correlations over 400 steps are within five standard errors."""
    steps = range(1, 401)
    reference = standardized_bits(steps, 0, 0, 0)
    error = len(steps) ** -0.5
    assert reference.mean(0).abs().max() < 5 * error
    compared = {
        "stream": standardized_bits(steps, 0, 1, 0),
        "third stream": standardized_bits(steps, 0, 2, 0),
        "parameter": standardized_bits(steps, 1, 0, 0),
        "block": standardized_bits(steps, 0, 0, BLOCK),
        "step before": standardized_bits(range(400), 0, 0, 0),
        "neighbour": reference.roll(1, dims=1),
    }
    for name, values in compared.items():
        assert (reference * values).mean(0).abs().max() < 5 * error, name


def test_rounding_errors_average_out() -> None:
    """For a value a third of the way between two bfloat16 numbers, means over 300 steps deviate as much as expected."""
    step = 2.0**-7
    values = torch.full((1000,), 1 + step / 3)
    total = torch.zeros(1000, dtype=torch.float64)
    for number in range(300):
        total += rounded(values, random_bits(table_offsets(0, number, 1)[0], 0, 0, 1000, CPU))
    deviation = (total / 300 - values.double()) / (step * (2 / 9 / 300) ** 0.5)
    assert deviation.abs().max() < 5
    assert 0.9 < deviation.std() < 1.1
