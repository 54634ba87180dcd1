"""Compare the contrastive loss with open_clip's: `python -m tests.perf.training.losses`.

Forward and backward run in float32 on all cores. Each measurement has its own process, so that its peak memory is
separate. Memory is the peak beyond the memory in use once the features exist. Values and gradients are compared at the
end.
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
    """Image features, slightly similar text features, and the logarithm of the logit scale."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(num_pairs, width, generator=generator)
    texts = torch.randn(num_pairs, width, generator=generator).add_(images, alpha=0.1)
    images, texts = (F.normalize(part, dim=-1).requires_grad_() for part in (images, texts))
    return images, texts, torch.tensor(LOG_SCALE, requires_grad=True)


def peak_mib() -> float:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(name: str, num_pairs: int, width: int, output: Path) -> None:
    """Compute one loss in this process; save its seconds, memory, value and gradients to `output`."""
    warm_up = features(64, width)
    images, texts, log_scale = features(num_pairs, width)
    if name == "ours":
        compute: Loss = contrastive_loss
    else:
        from open_clip.loss import ClipLoss

        theirs = ClipLoss()
        compute = lambda images, texts, log_scale: theirs(images, texts, log_scale.exp())  # noqa: E731

    compute(*warm_up).backward()  # type: ignore[no-untyped-call]
    before, began = peak_mib(), time.perf_counter()
    loss = compute(images, texts, log_scale)
    loss.backward()  # type: ignore[no-untyped-call]
    seconds = time.perf_counter() - began
    gradients = [leaf.grad for leaf in (images, texts, log_scale)]
    torch.save({"seconds": seconds, "mib": peak_mib() - before, "values": [loss.detach(), *gradients]}, output)


def main() -> None:
    """Measure both losses in turns at one size, then only ours at larger sizes."""
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
            path = Path(folder) / f"{name}-{num_pairs}.pt"
            command = [sys.executable, "-m", "tests.perf.training.losses", "--one", name, str(num_pairs), str(path)]
            subprocess.run([*command, "--width", str(options.width)], check=True)
            measured = torch.load(path, weights_only=True)
            print(f"| {name} | {num_pairs:,} | {measured['seconds']:.1f} s | {measured['mib']:,.0f} MiB |", flush=True)
        ours, theirs = (
            torch.load(Path(folder) / f"{name}-{options.pairs}.pt", weights_only=True)["values"]
            for name in ("ours", "open_clip")
        )
        for name, own, peer in zip(("loss", "images", "texts", "log scale"), ours, theirs, strict=True):
            print(f"{name}: relative difference {((own - peer).norm() / peer.norm()).item():.1e}")


if __name__ == "__main__":
    main()
