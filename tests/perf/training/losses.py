"""The contrastive loss against open_clip's: `python -m tests.perf.training.losses`.

Forward and backward in float32 on all cores, each in a process of its own, so that peak memory is its own too: what
the process takes beyond what it holds when features are there. Values and gradients are compared at the end.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.model.objectives.loss import contrastive_loss

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
LOG_SCALE = 4.0


def features(num_pairs: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images, texts that resemble them a little, and the logarithm of the scale."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(num_pairs, width, generator=generator)
    texts = torch.randn(num_pairs, width, generator=generator).add_(images, alpha=0.1)
    images, texts = (F.normalize(part, dim=-1).requires_grad_() for part in (images, texts))
    return images, texts, torch.tensor(LOG_SCALE, requires_grad=True)


def peak_mib() -> float:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(name: str, num_pairs: int, width: int, output: Path) -> None:
    """One loss, in this process: its seconds, memory, value and gradients go to `output`."""
    first = features(64, width)
    images, texts, log_scale = features(num_pairs, width)
    if name == "ours":
        compute: Loss = contrastive_loss
    else:
        from open_clip.loss import ClipLoss

        theirs = ClipLoss()
        compute = lambda images, texts, log_scale: theirs(images, texts, log_scale.exp())  # noqa: E731

    compute(*first).backward()  # type: ignore[no-untyped-call]
    before, began = peak_mib(), time.perf_counter()
    loss = compute(images, texts, log_scale)
    loss.backward()  # type: ignore[no-untyped-call]
    seconds = time.perf_counter() - began
    gradients = [leaf.grad for leaf in (images, texts, log_scale)]
    torch.save({"seconds": seconds, "mib": peak_mib() - before, "values": [loss.detach(), *gradients]}, output)


def main() -> None:
    """Measure ours and open_clip's at one size in turns, and ours alone at growing ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=16_384)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--alone", type=int, nargs="*", default=[32_768, 65_536, 131_072])
    parser.add_argument("--one", nargs=3)
    options = parser.parse_args()
    if options.one:
        name, num_pairs, output = options.one
        measure(name, int(num_pairs), options.width, Path(output))
        return
    with tempfile.TemporaryDirectory() as folder:
        runs = [("ours", options.pairs), ("open_clip", options.pairs)] * options.rounds
        for name, num_pairs in [*runs, *(("ours", size) for size in options.alone)]:
            place = Path(folder) / f"{name}-{num_pairs}.pt"
            command = [sys.executable, "-m", "tests.perf.training.losses", "--one", name, str(num_pairs), str(place)]
            subprocess.run([*command, "--width", str(options.width)], check=True)
            found = torch.load(place, weights_only=True)
            print(f"| {name} | {num_pairs:,} | {found['seconds']:.1f} s | {found['mib']:,.0f} MiB |", flush=True)
        ours, theirs = (
            torch.load(Path(folder) / f"{name}-{options.pairs}.pt", weights_only=True)["values"]
            for name in ("ours", "open_clip")
        )
        for what, one, other in zip(("loss", "images", "texts", "log scale"), ours, theirs, strict=True):
            print(f"{what}: greatest relative difference {((one - other).norm() / other.norm()).item():.1e}")


if __name__ == "__main__":
    main()
