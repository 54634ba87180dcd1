"""Measure radius search over 64-bit hashes: `python -m tests.perf.corpus.hamming`.

The inputs are 1, 3 and 10 million evenly distributed hashes, with planted neighbours at each distance up to the radius;
10 million crowded hashes; 200,000 hashes, compared with a brute-force search in numpy; and one bucket of a band as it
would be with 400 million hashes. Each measurement runs in its own process, to measure its peak memory.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from math import comb, log2
from multiprocessing import get_context
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from pipeline.data.duplicates.hamming import near_in_band, near_pairs
from pipeline.hashing import UInt64

NUM_PLANTED = 100_000
NUM_THREADS = 2
TARGET = 400_000_000
NUM_BUCKETS = 40
"""Number of buckets per band at the scale of TARGET."""
T = TypeVar("T")


@dataclass(frozen=True)
class Measured:
    """The measurements of one search."""

    num_hashes: int
    seconds: float
    core_seconds: float
    """CPU seconds of both threads."""
    peak_mib: float
    """Peak memory of the process, including the hashes and the result."""
    num_pairs: int
    num_planted: int
    num_planted_found: int


def even(count: int, seed: int = 0) -> UInt64:
    """Evenly distributed hashes."""
    return np.random.default_rng(seed).integers(0, 2**64, count, dtype=np.uint64)


def crowded(count: int, num_centres: int = 10_000) -> UInt64:
    """Hashes around centres. Each bit is flipped with probability 15%, so two of a centre differ in 16 on average."""
    random = np.random.default_rng(1)
    centres = random.integers(0, 2**64, num_centres, dtype=np.uint64)
    hashes = centres[random.integers(0, num_centres, count)]
    for start in range(0, count, 1 << 18):
        part = hashes[start : start + (1 << 18)]
        part ^= np.packbits(random.random((len(part), 64), np.float32) < 0.15, axis=1).view(np.uint64)[:, 0]
    return hashes


def plant(hashes: UInt64, radius: int, num_planted: int) -> npt.NDArray[np.int64]:
    """Make the last hashes neighbours of the first, at distances from 1 to `radius` in turn; return the index pairs."""
    random = np.random.default_rng(2)
    pairs: npt.NDArray[np.int64] = np.arange(num_planted)[:, None] + np.array([0, len(hashes) - num_planted])
    bits = random.random((num_planted, 64)).argsort(axis=1)[:, :radius].astype(np.uint64)
    flipped = np.arange(radius) <= (np.arange(num_planted) % radius)[:, None]
    masks = np.bitwise_or.reduce(np.where(flipped, np.uint64(1) << bits, np.uint64(0)), axis=1)
    hashes[pairs[:, 1]] = hashes[pairs[:, 0]] ^ masks
    return pairs


def search(make: Callable[[int], UInt64], num_hashes: int, radius: int) -> Measured:
    """Measure time, peak memory and found planted pairs, and check that all found pairs are near."""
    hashes = make(num_hashes)
    planted = plant(hashes, radius, min(NUM_PLANTED, num_hashes // 4))
    started, started_core = time.perf_counter(), time.process_time()
    found = near_pairs(hashes, radius, NUM_THREADS)
    seconds, core_seconds = time.perf_counter() - started, time.process_time() - started_core
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    assert (np.bitwise_count(hashes[found[:, 0]] ^ hashes[found[:, 1]]) <= radius).all()
    keys, planted_keys = (pairs[:, 0] * num_hashes + pairs[:, 1] for pairs in (found, planted))
    assert (np.diff(keys) > 0).all(), "each pair once, in ascending order"
    num_found = int(np.isin(planted_keys, keys, kind="sort").sum())
    return Measured(num_hashes, seconds, core_seconds, peak_mib, len(found), len(planted), num_found)


def brute(hashes: UInt64, radius: int) -> npt.NDArray[np.int64]:
    """Find all pairs by brute force, one row at a time, which was the fastest way found in numpy."""
    distances, near = np.empty(len(hashes), np.uint8), []
    for i in range(len(hashes) - 1):
        rest = hashes[i + 1 :]
        out = np.bitwise_count(rest ^ hashes[i], out=distances[: len(rest)])
        if out.min() <= radius:
            near += [(i, i + 1 + j) for j in np.flatnonzero(out <= radius).tolist()]
    return np.array(near, np.int64).reshape(-1, 2)


def against_brute(num_hashes: int, radius: int) -> tuple[float, float, float]:
    """Seconds of our search with one and with two threads, and of brute force; checks that the results are equal."""
    hashes = even(num_hashes)
    plant(hashes, radius, num_hashes // 10)
    times = []
    for threads in (1, NUM_THREADS):
        started = time.perf_counter()
        ours = near_pairs(hashes, radius, threads)
        times.append(time.perf_counter() - started)
    started = time.perf_counter()
    theirs = brute(hashes, radius)
    seconds = time.perf_counter() - started
    assert np.array_equal(ours, theirs)
    return times[0], times[1], seconds


def bucket(num_hashes: int, radius: int) -> tuple[float, float]:
    """CPU seconds and peak memory in MiB of a bucket of the first band with 1 / NUM_BUCKETS of its keys."""
    hashes = even(num_hashes)
    num_keys = 2 ** (64 // (radius + 1))
    mask = np.uint64(num_keys - 1)
    hashes = np.unique((hashes & ~mask) | (hashes & mask) // np.uint64(NUM_BUCKETS))
    started = time.process_time()
    near_in_band(hashes, radius, 0)
    return time.process_time() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_process(work: Callable[..., T], *arguments: object) -> T:
    """Run a function in its own process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def entropy(share: float) -> float:
    """The entropy in bits of a bit that is set with this probability."""
    return -share * log2(share) - (1 - share) * log2(1 - share)


def exponent(measured: Sequence[Measured]) -> float:
    """The slope of log(core seconds) over log(hashes), by least squares."""
    points = np.log([[run.num_hashes, run.core_seconds] for run in measured])
    return float(np.polyfit(points[:, 0], points[:, 1], 1)[0])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_hashes", type=int, default=10_000_000)
    parser.add_argument("--radius", type=int, default=4)
    options = parser.parse_args()
    largest, radius = options.num_hashes, options.radius
    print("| hashes | s | core s | peak MiB | pairs | planted | found |\n|---|---:|---:|---:|---:|---:|---:|")
    runs = []
    for make, count in ((even, largest // 10), (even, largest * 3 // 10), (even, largest), (crowded, largest)):
        runs.append(run := in_process(search, make, count, radius))
        figures = f"{run.seconds:.2f} | {run.core_seconds:.2f} | {run.peak_mib:,.0f} | {run.num_pairs:,}"
        planted = f"{run.num_planted:,} | {run.num_planted_found:,}"
        print(f"| {count:,} {make.__name__} | {figures} | {planted} |", flush=True)
    theory = 1 + entropy(radius / 64)
    steps = [exponent(runs[i : i + 2]) for i in range(2)]
    print(f"\nGrowth n^{exponent(runs[:3]):.2f} ({steps[0]:.2f}, {steps[1]:.2f}); n^{theory:.3f} in theory")
    near = sum(comb(64, distance) for distance in range(radius + 1)) / 2**64
    print(f"By chance {largest**2 / 2 * near:,.1f} pairs of {largest:,} even hashes are within {radius} bits")
    one_thread, threads, peer = in_process(against_brute, min(200_000, largest), radius)
    print(
        f"\n{min(200_000, largest):,} hashes: comparing all {peer:.2f} s; ours {one_thread:.3f} s on one core ", end=""
    )
    print(f"({peer / one_thread:,.0f} times faster), {threads:.3f} s on two ({peer / threads:,.0f} times)", flush=True)
    project(largest, runs[2].core_seconds, radius)


def project(num_hashes: int, core_seconds: float, radius: int) -> None:
    """Project the cost of TARGET hashes from one bucket of a band; the bucket shrinks in proportion to num_hashes."""
    per_bucket = TARGET // NUM_BUCKETS * num_hashes // 10_000_000
    num_buckets = (radius + 1) * NUM_BUCKETS
    bucket_seconds, peak_mib = in_process(bucket, per_bucket, radius)
    exchanged_gb = (radius + 1) * per_bucket * NUM_BUCKETS * 8 / 1e9
    print(f"\nOne of {num_buckets} buckets of {radius + 1} bands, {per_bucket:,} hashes each: ", end="")
    print(f"{bucket_seconds:.1f} core s, {peak_mib:,.0f} MiB", end="; ")
    print(f"all of them {num_buckets * bucket_seconds / 3600:.2f} core hours, {exchanged_gb:,.1f} GB exchanged")
    theory = 1 + entropy(radius / 64)
    hours = (TARGET / num_hashes) ** theory * core_seconds / 3600
    print(f"One machine that grows as n^{theory:.3f} from {num_hashes:,}: {hours:.2f} core hours")


if __name__ == "__main__":
    main()
