"""Which copies of a photograph are found, and what else: `python -m tests.perf.corpus.detection --output FOLDER`
(CLIP_DATA).

2,000 photographs, each with the copies of copies.py, all of them compared with all. A copy counts as found when it is
near enough to its photograph; a pair that is found and is of two photographs is an error (nearest.png shows those that
come nearest: none are the same picture). Written to FOLDER: distances.png, near_duplicates.png, nearest.png.
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
from pipeline.data.images.phash import AS_IT_IS, MIRRORED, Variant, perceptual_hash, perceptual_hashes
from pipeline.data.images.resize import ImageProcessor
from pipeline.hashing import UInt64
from tests.perf.corpus.copies import TRANSFORMATIONS, hashes_of_versions, turned
from tests.perf.crawl.matching import DATA

NUM_PHOTOGRAPHS = 2_000
RADII = range(0, 13, 2)
"""Distances between photographs are even (phash.py)."""
_QUARTERS = [Variant(mirrored, degrees) for mirrored in (False, True) for degrees in (0, 90, 180, 270)]
_TURNED = [Variant(degrees=degrees) for degrees in (-5, -2.5, 2.5, 5)]
NUM_TURNED = 500
"""Photographs that are turned."""
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Found:
    """Pairs of versions that a detector found: numbers are photograph * number of versions + version."""

    pairs: Int64
    """Of shape (M, 2), i < j, each pair once."""
    distances: npt.NDArray[Any]
    """Of shape (M,): less is nearer, whatever it is: bits, or 1 - cosine."""


@dataclass(frozen=True)
class Judged:
    """What a detector finds up to a threshold."""

    threshold: float
    recall: npt.NDArray[np.float64]
    """Of each transformation, the share of photographs whose copy is found."""
    num_found: int
    num_wrong: int
    """Of two photographs."""

    @property
    def precision(self) -> float:
        """The share of pairs that are of one photograph."""
        return 1 - self.num_wrong / max(self.num_found, 1)


def judge(found: Found, thresholds: Sequence[float], num_photographs: int, num_versions: int) -> list[Judged]:
    """What is found up to each threshold, by any similarity.

    Args:
        found: pairs up to the largest threshold.
        thresholds: distances.
        num_photographs: each a different picture.
        num_versions: of each photograph, the first as it is and the others made from it.
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
    """By the hash alone: hashes of shape (N,)."""
    pairs = near_pairs(hashes, radius, 2)
    return Found(pairs, np.bitwise_count(hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]]))


def by_flips(hashes: UInt64, mirrored: UInt64, radius: int) -> Found:
    """By the hash, and that of the mirrored picture: both of shape (N,)."""
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
    """A table of recall and precision, a column for each threshold."""
    print(f"\n| {name} | " + " | ".join(f"{one.threshold:g}" for one in judged) + " |")
    print("|---|" + "---:|" * len(judged))
    for row, transformation in enumerate(TRANSFORMATIONS):
        print(f"| {transformation} | " + " | ".join(f"{one.recall[row]:.3f}" for one in judged) + " |")
    print("| *pairs found* | " + " | ".join(f"{one.num_found:,}" for one in judged) + " |")
    print("| *of two photographs* | " + " | ".join(f"{one.num_wrong:,}" for one in judged) + " |")
    print("| *precision* | " + " | ".join(f"{one.precision:.5f}" for one in judged) + " |", flush=True)


def show_turned(photographs: Sequence[bytes], radius: int) -> None:
    """A table of recall of slightly turned copies, by the hash alone and by those of the photograph turned itself."""
    hashes = perceptual_hashes(photographs, [AS_IT_IS, *_TURNED])
    pictures = [Image.open(io.BytesIO(photograph)).convert("RGB") for photograph in photographs]
    print(
        f"\n| turned by, radius {radius} | the hash alone | and turned by 2.5° and 5° to both sides |\n|---|---:|---:|"
    )
    for degrees in (1, 2, 3, 4, 5, 7):
        copies = perceptual_hash([turned(picture, degrees) for picture in pictures])
        within = np.bitwise_count(hashes ^ copies[:, None]) <= radius
        print(f"| {degrees}° | {within[:, 0].mean():.3f} | {within.any(axis=1).mean():.3f} |", flush=True)


def draw_distances(hashes: UInt64, path: Path, radius: int) -> None:
    """Histograms of distances: of each transformation to its photograph, and between photographs.

    Args:
        hashes: shape (photographs, versions, 2): as it is and mirrored.
        path: PNG.
        radius: that is drawn as a line.
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
    """The pairs of photographs that come nearest to each other, with their bits."""
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
    """The pictures of a folder with their distances to the first of each family, and the variant that is nearest."""
    files = sorted(folder.glob("*.jpg"))
    processor = ImageProcessor(ImageConfig())
    reasons = {file: processor(file.read_bytes()).reason for file in files}
    variants = [*_QUARTERS, *_TURNED]
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
    turned = f"turned by {variant.degrees:g}°" if variant.degrees else ""
    return " and ".join(filter(None, (turned, "mirrored" if variant.mirrored else ""))) or "as it is"


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
    hashes = hashes_of_versions(photographs, (AS_IT_IS, MIRRORED))
    (num_photographs, num_versions, _), flat = hashes.shape, hashes.reshape(-1, 2)
    print(f"{num_photographs:,} photographs in {num_versions} versions: {len(flat):,} hashes")
    for name, found in (
        ("recall by the hash, radius", by_hash(flat[:, 0], RADII[-1])),
        ("with flips, radius", by_flips(flat[:, 0], flat[:, 1], RADII[-1])),
    ):
        judged = judge(found, RADII, num_photographs, num_versions)
        show(name, judged)
        others = (len(flat) ** 2 - num_photographs * num_versions**2) / 2
        shares = ", ".join(f"{one.num_wrong / others:.1e} within {one.threshold}" for one in judged if one.num_wrong)
        print(f"\nOf {others:,.0f} pairs of two photographs' versions: {shares}")
    show_turned(photographs[:NUM_TURNED], options.radius)
    weights = np.bitwise_count(flat[:, 0])
    print(f"\n{(weights == 32).mean():.3%} of the hashes have 32 bits set")
    draw_distances(hashes, options.output / "distances.png", options.radius)
    nearest = by_hash(hashes[:, 0, 0], 16)
    for i, j in draw_nearest(photographs, nearest, options.output / "nearest.png"):
        print(f"{np.bitwise_count(hashes[i, 0, 0] ^ hashes[j, 0, 0])} bits: {keys[i]} {keys[j]}")
    draw_near_duplicates(DATA / "near_duplicates", options.output / "near_duplicates.png")


if __name__ == "__main__":
    main()
