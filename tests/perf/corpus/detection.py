"""Measure recall and precision of duplicate detection: `python -m tests.perf.corpus.detection --output FOLDER`.

Needs CLIP_DATA. 2,000 photographs and the copies of copies.py are compared, all with all. A copy counts as found if it
is near enough to its photograph. A pair of two different photographs counts as an error; nearest.png shows the nearest
such pairs, none of which show the same picture. Writes distances.png, near_duplicates.png and nearest.png to FOLDER.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from PIL import Image

from pipeline.data.duplicates.hamming import near, near_pairs
from pipeline.data.images.image_header import ImageConfig
from pipeline.data.images.phash import MIRRORED, UNCHANGED, Variant, perceptual_hash, perceptual_hashes
from pipeline.data.images.resize import ImageProcessor
from pipeline.hashing import UInt64
from tests.perf.corpus.copies import TRANSFORMATIONS, hashes_of_versions, rotated
from tests.perf.crawl.matching import DATA

NUM_PHOTOGRAPHS = 2_000
RADII = range(0, 13, 2)
"""Only even radii, because distances between photographs are even (phash.py)."""
_QUARTERS = [Variant(mirrored, degrees) for mirrored in (False, True) for degrees in (0, 90, 180, 270)]
_ROTATED = [Variant(degrees=degrees) for degrees in (-5, -2.5, 2.5, 5)]
NUM_ROTATED = 500
"""Number of photographs in the measurement of rotated copies."""
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Found:
    """Pairs of versions that a detector found. The index of a version is photograph * number of versions + version."""

    pairs: Int64
    """Indices of shape (M, 2) with i < j, each pair once."""
    distances: npt.NDArray[Any]
    """Distances of shape (M,), in bits or as 1 - cosine."""


@dataclass(frozen=True)
class Judged:
    """Recall and errors of a detector at one threshold."""

    threshold: float
    recall: npt.NDArray[np.float64]
    """The share of photographs whose copy is found, for each transformation."""
    num_found: int
    num_wrong: int
    """Number of pairs found of two different photographs."""

    @property
    def precision(self) -> float:
        """The share of found pairs whose versions belong to the same photograph."""
        return 1 - self.num_wrong / max(self.num_found, 1)


def judge(found: Found, thresholds: Sequence[float], num_photographs: int, num_versions: int) -> list[Judged]:
    """Compute recall and errors at each threshold.

    Args:
        found: pairs up to the largest threshold.
        thresholds: maximum distances.
        num_photographs: number of photographs, all of different pictures.
        num_versions: number of versions per photograph: the photograph itself first, then its copies.
    """
    photographs, version = found.pairs // num_versions, found.pairs % num_versions
    wrong = photographs[:, 0] != photographs[:, 1]
    judged = []
    for threshold in thresholds:
        near_enough = found.distances <= threshold
        of_copies = version[near_enough & ~wrong & (version[:, 0] == 0), 1]
        recall = np.bincount(of_copies, minlength=num_versions)[1:] / num_photographs
        judged.append(Judged(threshold, recall, int(near_enough.sum()), int((near_enough & wrong).sum())))
    return judged


def by_hash(hashes: UInt64, radius: int) -> Found:
    """Find pairs by hashes of shape (N,)."""
    pairs = near_pairs(hashes, radius, 2)
    return Found(pairs, np.bitwise_count(hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]]))


def by_flips(hashes: UInt64, mirrored: UInt64, radius: int) -> Found:
    """Find pairs by the hashes of pictures and of mirrored pictures, both of shape (N,)."""
    straight, flipped = by_hash(hashes, radius), near(mirrored, hashes, radius, 2)
    flipped = flipped[flipped[:, 0] != flipped[:, 1]]
    bits = np.bitwise_count(mirrored[flipped[:, 0]] ^ hashes[flipped[:, 1]])
    pairs = np.concatenate([straight.pairs, np.sort(flipped, axis=1)])
    distances = np.concatenate([straight.distances, bits])
    order = np.lexsort((distances, pairs[:, 1], pairs[:, 0]))
    pairs, distances = pairs[order], distances[order]
    first = np.ones(len(pairs), bool)
    first[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
    return Found(pairs[first], distances[first])


def show(name: str, judged: Sequence[Judged]) -> None:
    """Print a table of recall and precision, with one column per threshold."""
    print(f"\n| {name} | " + " | ".join(f"{result.threshold:g}" for result in judged) + " |")
    print("|---|" + "---:|" * len(judged))
    for row, transformation in enumerate(TRANSFORMATIONS):
        print(f"| {transformation} | " + " | ".join(f"{result.recall[row]:.3f}" for result in judged) + " |")
    print("| *pairs found* | " + " | ".join(f"{result.num_found:,}" for result in judged) + " |")
    print("| *of two photographs* | " + " | ".join(f"{result.num_wrong:,}" for result in judged) + " |")
    print("| *precision* | " + " | ".join(f"{result.precision:.5f}" for result in judged) + " |", flush=True)


def show_rotated(photographs: Sequence[bytes], radius: int) -> None:
    """Print the recall of slightly rotated copies, by the hash alone and with hashes of the rotated photograph."""
    hashes = perceptual_hashes(photographs, [UNCHANGED, *_ROTATED])
    pictures = [Image.open(io.BytesIO(photograph)).convert("RGB") for photograph in photographs]
    print(f"\n| rotated by, radius {radius} | the hash alone | with hashes rotated by ±2.5° and ±5° |\n|---|---:|---:|")
    for degrees in (1, 2, 3, 4, 5, 7):
        copies = perceptual_hash([rotated(picture, degrees) for picture in pictures])
        within = np.bitwise_count(hashes ^ copies[:, None]) <= radius
        print(f"| {degrees}° | {within[:, 0].mean():.3f} | {within.any(axis=1).mean():.3f} |", flush=True)


def draw_distances(hashes: UInt64, path: Path, radius: int) -> None:
    """Draw histograms of the distances between photographs and copies, and between different photographs.

    Args:
        hashes: hashes of shape (photographs, versions, 2): unchanged and mirrored.
        path: PNG file to write.
        radius: radius to draw as a line.
    """
    originals = hashes[:, :1, 0]
    distances = dict(zip(TRANSFORMATIONS, np.bitwise_count(hashes[:, 1:, 0] ^ originals).T, strict=True))
    distances["mirrored, by the mirrored hash"] = np.bitwise_count(hashes[:, -1, 1] ^ originals[:, 0])
    others = np.bitwise_count(originals ^ originals[:, 0])
    distances["two photographs"] = others[np.triu_indices(len(others), 1)]
    figure, axes = plt.subplots(5, 3, figsize=(11, 12), sharex=True, layout="constrained")
    for axis, (name, bits) in zip(axes.flat, distances.items(), strict=True):
        counts = np.bincount(bits, minlength=65)
        shares = counts.reshape(-1, 1)[:64].reshape(32, 2).sum(axis=1) / len(bits)
        axis.bar(np.arange(0, 64, 2), shares, width=1.7, color="#c2562d" if name == "two photographs" else "#3b6ea5")
        axis.axvline(radius + 1, color="#444444", linestyle=":", linewidth=1)
        axis.set_title(name, fontsize=10)
        axis.set_ylim(0, min(shares.max() * 1.4, 1))
        within = (bits <= radius).mean()
        within_text = (
            f"{int((bits <= radius).sum()):,} of {len(bits):,}" if name == "two photographs" else f"{within:.1%}"
        )
        axis.text(
            0.97, 0.9, f"{within_text} within {radius}", transform=axis.transAxes, ha="right", va="top", fontsize=9
        )
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
        axis.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        axis.set_xlim(-1.5, 50)
    figure.supxlabel("bits of 64 in which the perceptual hashes differ", fontsize=10)
    figure.supylabel("share of pairs", fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_nearest(photographs: Sequence[bytes], found: Found, path: Path, num_pairs: int = 24) -> list[tuple[int, int]]:
    """Draw the nearest pairs of photographs with their distances in bits; return the pairs."""
    order = np.argsort(found.distances, kind="stable")[:num_pairs]
    figure, axes = plt.subplots(-(-num_pairs // 4), 4, figsize=(12, 10), layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for axis, pair, bits in zip(axes.flat, found.pairs[order].tolist(), found.distances[order], strict=False):
        sides = [np.asarray(Image.open(io.BytesIO(photographs[i])).convert("RGB").resize((220, 220))) for i in pair]
        axis.imshow(np.concatenate([sides[0], np.full((220, 8, 3), 255, np.uint8), sides[1]], axis=1))
        axis.set_title(f"{bits} bits", fontsize=9)
    figure.savefig(path, dpi=90)
    plt.close(figure)
    return [(pair[0], pair[1]) for pair in found.pairs[order].tolist()]


def draw_near_duplicates(folder: Path, path: Path) -> None:
    """Draw the pictures of a folder with their distances to the first of each family, and the nearest variant."""
    files = sorted(folder.glob("*.jpg"))
    processor = ImageProcessor(ImageConfig())
    reasons = {file: processor(file.read_bytes()).reason for file in files}
    variants = [*_QUARTERS, *_ROTATED]
    hashes = {file: perceptual_hashes([file.read_bytes()], variants)[0] for file in files if reasons[file] is None}
    references = [file for file in files if "_" not in file.stem]
    figure, axes = plt.subplots(2, -(-len(files) // 2), figsize=(12, 7.6), layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
        axis.set_anchor("N")
    for axis, file in zip(axes.flat, files, strict=False):
        if file in hashes:
            with Image.open(file) as picture:
                axis.imshow(picture)
        else:
            axis.imshow(np.full((480, 640, 3), 225, np.uint8))
        lines = [file.stem] if file in hashes else [file.stem, f"refused: {reasons[file]}", ""]
        if file in hashes:
            for reference in references:
                bits = np.bitwise_count(hashes[file] ^ hashes[reference][0])
                best = variants[int(bits.argmin())]
                lines.append(f"to {reference.stem}: {bits[0]} bits; {_named(best)} {bits.min()}")
        axis.set_title("\n".join(lines), fontsize=9)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _named(variant: Variant) -> str:
    rotation = f"rotated by {variant.degrees:g}°" if variant.degrees else ""
    return " and ".join(filter(None, (rotation, "mirrored" if variant.mirrored else ""))) or "unchanged"


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--num_photographs", type=int, default=NUM_PHOTOGRAPHS)
    parser.add_argument("--radius", type=int, default=6, help="drawn in the histograms")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    table = pq.read_table(DATA / "photos.parquet", columns=["key", "image"]).slice(0, options.num_photographs)
    photographs, keys = table["image"].to_pylist(), table["key"].to_pylist()
    hashes = hashes_of_versions(photographs, (UNCHANGED, MIRRORED))
    (num_photographs, num_versions, _), flat = hashes.shape, hashes.reshape(-1, 2)
    print(f"{num_photographs:,} photographs in {num_versions} versions: {len(flat):,} hashes")
    for name, found in (
        ("recall by the hash, radius", by_hash(flat[:, 0], RADII[-1])),
        ("with flips, radius", by_flips(flat[:, 0], flat[:, 1], RADII[-1])),
    ):
        judged = judge(found, RADII, num_photographs, num_versions)
        show(name, judged)
        others = (len(flat) ** 2 - num_photographs * num_versions**2) / 2
        shares = ", ".join(
            f"{result.num_wrong / others:.1e} within {result.threshold}" for result in judged if result.num_wrong
        )
        print(f"\nOf {others:,.0f} pairs of two photographs' versions: {shares}")
    show_rotated(photographs[:NUM_ROTATED], options.radius)
    weights = np.bitwise_count(flat[:, 0])
    print(f"\n{(weights == 32).mean():.3%} of the hashes have 32 bits set")
    draw_distances(hashes, options.output / "distances.png", options.radius)
    nearest = by_hash(hashes[:, 0, 0], 16)
    for i, j in draw_nearest(photographs, nearest, options.output / "nearest.png"):
        print(f"{np.bitwise_count(hashes[i, 0, 0] ^ hashes[j, 0, 0])} bits: {keys[i]} {keys[j]}")
    draw_near_duplicates(DATA / "near_duplicates", options.output / "near_duplicates.png")


if __name__ == "__main__":
    main()
