"""Compare model quality with open_clip's training: `python -m tests.perf.training.quality runs/quality`.

Needs CLIP_DATA. Both sides train the same small model, with three seeds each, on the same photographs and tokens, with
the same number of steps and schedule. Ours uses `pretrain`; open_clip uses its own `train_one_epoch`, augmentation,
scheduler and initial weights. Both results are loaded into our model and scored on held-out photographs. A rerun
resumes unfinished runs.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cluster.resources import Pool
from cluster.session import SessionConfig, session
from pipeline.data.snapshots.reading import shard_infos
from pipeline.data.snapshots.snapshot import Snapshot
from pipeline.eval.protocols.retrieval import RECALL_AT, image_ranks, text_ranks
from pipeline.model.config import ImageTowerConfig, ModelConfig, TextTowerConfig
from pipeline.model.images.preprocess import preprocess_for
from pipeline.model.objectives.clip import CLIP
from pipeline.model.objectives.loss import contrastive_loss
from pipeline.model.tokenizer.tokenizer import Tokenizer
from pipeline.model.weights.convert import import_state
from pipeline.model.weights.model_folder import load
from pipeline.train.config import TrainConfig
from pipeline.train.workers.run import Pretraining
from pipeline.train.workers.trainer import pretrain
from tests.perf.peer import network_like, optimizer_of, train_epoch
from tests.perf.training.photographs import Photograph, photographs, write_pairs

SEEDS = (0, 1, 2)
SIDE, STORED_SIDE, LAYERS, WIDTH = 64, 72, 4, 128
MODEL = ModelConfig(
    embed_dim=WIDTH,
    image=ImageTowerConfig(
        architecture="vit_base_patch16_clip_quickgelu_224",
        image_size=SIDE,
        options={"img_size": SIDE, "embed_dim": WIDTH, "depth": LAYERS, "num_heads": 2},
    ),
    text=TextTowerConfig(width=WIDTH, heads=2, layers=LAYERS, context_length=32, vocab_size=4096),
)
TRAIN = TrainConfig(
    global_batch_size=128, epochs=5, learning_rate=1e-3, warmup_steps=50, shuffle_row_groups=64, cpus_per_worker=2,
    chunk_size=128, log_every_steps=20, checkpoint_every_steps=100_000,
)  # fmt: skip


def train_ours(folder: Path, dataset: str, seed: int) -> None:
    """Train with `pretrain`; the model is written to folder/model."""
    snapshot = Snapshot.open(dataset)
    train = replace(TRAIN, seed=seed)
    run = Pretraining(
        output=str(folder), shards=shard_infos(snapshot.shards), snapshot_id=snapshot.snapshot_id, model=MODEL,
        train=train,
    )  # fmt: skip
    with session(SessionConfig(num_cpus=4), needs=[Pool(size=1, cpus=2)]):
        pretrain(run)


class Pairs(Dataset[tuple[Tensor, Tensor]]):
    """Photographs with each of their captions, with open_clip's default augmentation."""

    def __init__(self, learned: Sequence[Photograph], tokenizer: Tokenizer) -> None:
        from open_clip.transform import image_transform

        self._transform = image_transform(SIDE, is_train=True)
        pictures = [Image.open(io.BytesIO(photograph.jpeg)).convert("RGB") for photograph in learned]
        self._pairs = [(picture, i) for i, picture in enumerate(pictures) for _ in learned[i].captions]
        self._tokens = tokenizer([caption for photograph in learned for caption in photograph.captions])

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self._transform(self._pairs[index][0]), self._tokens[index]


def train_theirs(learned: Sequence[Photograph], tokenizer: Tokenizer, seed: int) -> CLIP:
    """Train with open_clip; return the weights in our model."""
    from open_clip.loss import ClipLoss
    from open_clip_train.scheduler import cosine_lr

    network = CLIP(replace(MODEL, text=replace(MODEL.text, vocab_size=tokenizer.vocab_size)))
    torch.manual_seed(seed)
    peer = network_like(network)
    optimizer = optimizer_of(peer, TRAIN)
    loader = DataLoader(Pairs(learned, tokenizer), TRAIN.global_batch_size, shuffle=True, drop_last=True)
    loader.num_batches, loader.num_samples = len(loader), len(loader) * TRAIN.global_batch_size
    scheduler = cosine_lr(optimizer, TRAIN.learning_rate, TRAIN.warmup_steps, len(loader) * TRAIN.epochs)
    for epoch in range(TRAIN.epochs):
        train_epoch(
            peer, loader, ClipLoss(), optimizer, epoch=epoch, scheduler=scheduler, batch_size=TRAIN.global_batch_size
        )
    import_state(network, peer.state_dict())
    return network


@torch.no_grad()
def score(network: CLIP, tokenizer: Tokenizer, held_out: Sequence[Photograph]) -> dict[str, float]:
    """Held-out loss, averaged over the five captions of each photograph, and recall in both directions."""
    preprocess = preprocess_for(SIDE)
    images = torch.stack([preprocess(Image.open(io.BytesIO(photograph.jpeg))) for photograph in held_out])
    image_features = network.eval().encode_image(images, normalize=True)
    captions = [caption for photograph in held_out for caption in photograph.captions]
    text_features = network.encode_text(tokenizer(captions), normalize=True)
    owners = torch.tensor([i for i, photograph in enumerate(held_out) for _ in photograph.captions])
    by_caption = text_features.view(len(held_out), -1, text_features.shape[1]).unbind(1)
    losses = [contrastive_loss(image_features, texts, network.logit_scale).item() for texts in by_caption]
    scores = {"loss": statistics.mean(losses)}
    for name, ranks in (
        ("image to text", text_ranks(image_features, text_features, owners)),
        ("text to image", image_ranks(image_features, text_features, owners)),
    ):
        scores |= {f"{name} R@{k}": 100 * (ranks < k).float().mean().item() for k in RECALL_AT}
    return scores


def print_table(scores: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Print the scores of each seed, and their means and standard deviations."""
    names = list(scores["ours"][0])
    print(f"\n| | {' | '.join(names)} |\n|---|{'---:|' * len(names)}")
    for side, side_scores in scores.items():
        for seed, values in zip(SEEDS, side_scores, strict=True):
            print(f"| {side}, seed {seed} | {' | '.join(f'{values[name]:.2f}' for name in names)} |")
        spread = {name: [values[name] for values in side_scores] for name in names}
        cells = [f"{statistics.mean(spread[name]):.2f} ± {statistics.stdev(spread[name]):.2f}" for name in names]
        print(f"| **{side}** | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Train missing models, score all of them and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    folder = parser.parse_args().output.resolve()
    torch.set_num_threads(2)
    learned, held_out = photographs(STORED_SIDE)
    dataset = write_pairs(folder, learned)
    scores: dict[str, list[dict[str, float]]] = {"ours": [], "open_clip": []}
    for seed in SEEDS:
        train_ours(folder / f"ours-{seed}", dataset, seed)
        model = load(str(folder / f"ours-{seed}" / "model"))
        assert isinstance(model.network, CLIP)
        scores["ours"].append(score(model.network, model.tokenizer, held_out))
        path = folder / f"open_clip-{seed}.json"
        if not path.exists():
            network = train_theirs(learned, model.tokenizer, seed)
            path.write_text(json.dumps(score(network, model.tokenizer, held_out)))
        scores["open_clip"].append(json.loads(path.read_text()))
        print(scores["ours"][-1], scores["open_clip"][-1], flush=True)
    print_table(scores)


if __name__ == "__main__":
    main()
