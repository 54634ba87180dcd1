"""A training step on several gloo processes of this machine, run as `python -m tests.pipeline.train.ranks`."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from pipeline.train.grad_cache import Batch, accumulate_gradients
from tests.pipeline.model.models import small_batch, small_clip

TIMEOUT_SECONDS = 120


def step_on_ranks(sizes: list[int], chunk_size: int, folder: Path) -> dict[str, torch.Tensor]:
    """The gradients, and `loss`, of a step that so many processes with so many samples each take together.

    Raises AssertionError unless all of them end with the same.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shares = ",".join(map(str, sizes))
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", __name__, str(rank), shares, str(chunk_size), str(folder)],
            env=os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(len(sizes))
    ]
    assert [process.wait(TIMEOUT_SECONDS) for process in processes] == [0] * len(sizes)
    results = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(len(sizes))]
    for result in results[1:]:
        assert result.keys() == results[0].keys()
        assert all(torch.equal(result[name], results[0][name]) for name in result)
    first: dict[str, torch.Tensor] = results[0]
    return first


def _main(rank: int, sizes: list[int], chunk_size: int, folder: Path) -> None:
    dist.init_process_group("gloo", rank=rank, world_size=len(sizes))
    start = sum(sizes[:rank])
    images, tokens, lengths = (part[start : start + sizes[rank]] for part in small_batch(sum(sizes)))
    model = small_clip().eval()  # no dropout: its draws are each rank's own
    result = accumulate_gradients(
        model, Batch(images, tokens, lengths), chunk_size=chunk_size, local_batch_sizes=sizes, rank=rank, bf16=False
    )
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    accuracies = torch.tensor([result.accuracy_image_to_text, result.accuracy_text_to_image])
    torch.save(gradients | {"loss": torch.tensor(result.loss), "accuracies": accuracies}, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    _main(int(sys.argv[1]), [int(size) for size in sys.argv[2].split(",")], int(sys.argv[3]), Path(sys.argv[4]))
