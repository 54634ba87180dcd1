"""Run the whole chain on real data: crawl captioned photographs on loopback, train a model, and score its retrieval."""

import json
from collections.abc import Iterator
from html import escape
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import benchmark, crawl, curate, pretrain, queries
from jobs.benchmark import BenchmarkJob
from jobs.crawl import CrawlJob
from jobs.curate import CurateJob
from jobs.demo.web.archive import Exchange, write_archive
from jobs.pretrain import PretrainJob
from jobs.queries import QueriesJob
from pipeline.data.crawl.fetch import FetchConfig
from pipeline.data.images.image_header import ImageConfig
from pipeline.data.queries.query_list import QueriesConfig
from pipeline.data.snapshots.snapshot import Snapshot
from pipeline.train.config import TrainConfig
from tests.web import Web, web

pytestmark = [pytest.mark.realdata, pytest.mark.cluster]

NUM_PHOTOS = 640
NUM_SCORED = 300
PHOTOS_PER_PAGE = 5
NUM_HOSTS = 10


@pytest.fixture(scope="module")
def photos(clip_data: Path) -> pa.Table:
    return pq.read_table(clip_data / "photos.parquet", columns=["key", "captions", "image"])


@pytest.fixture(scope="module")
def site(photos: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Web, Path]]:
    """A web with the first photographs on pages of ten hosts, and the folder with an archive of the pages."""
    folder = tmp_path_factory.mktemp("photos")
    images, pages = {}, []
    rows = photos.slice(0, NUM_PHOTOS).to_pylist()
    for first in range(0, NUM_PHOTOS, PHOTOS_PER_PAGE):
        figures = []
        host = f"photos-{first // PHOTOS_PER_PAGE % NUM_HOSTS}.example"
        for row in rows[first : first + PHOTOS_PER_PAGE]:
            path = f"/photos/{row['key']}.jpg"
            images[f"http://{host}{path}"] = row["image"]
            alt, title, caption = (escape(text, quote=True) for text in row["captions"][:3])
            image = f'<img src="{path}" alt="{alt}" title="{title}">'
            figures.append(f"<figure>{image}<figcaption>{caption}</figcaption></figure>")
        body = f"<!doctype html><title>Photographs</title>{''.join(figures)}".encode()
        headers = {"Content-Type": "text/html; charset=utf-8"}
        pages.append(Exchange(url=f"http://{host}/{first}.html", headers=headers, body=body))
    write_archive(folder / "pages.warc.gz", pages)
    with web(folder / "site", images) as served:
        yield served, folder


@pytest.mark.faults
@pytest.mark.timeout(400)
@pytest.mark.usefixtures("ray_local")
def test_photographs_become_a_snapshot_and_a_model(site: tuple[Web, Path], photos: pa.Table, clip_data: Path) -> None:
    served, folder = site
    captions = pq.read_table(clip_data / "captions.parquet", columns=["text"])["text"].slice(0, 20_000)
    (folder / "captions.txt").write_text("\n".join(captions.to_pylist()))
    thresholds = QueriesConfig(min_word_count=20, min_bigram_count=20)
    queries.main(QueriesJob(text=str(folder / "captions.txt"), output=str(folder / "queries"), queries=thresholds))
    crawl.main(
        CrawlJob(
            input=str(folder / "pages.warc.gz"),
            queries=str(folder / "queries" / "queries.parquet"),
            output=str(folder / "crawl"),
            num_buckets=4,
            fetch=FetchConfig(connect_to=served.connect_to, min_interval_seconds=0.005),
            image=ImageConfig(image_size=64),
        )
    )
    curate.main(CurateJob(crawl=str(folder / "crawl"), output=str(folder / "curate"), num_buckets=4))
    snapshot = Snapshot.open(str(folder / "curate" / "dataset"))
    assert snapshot.verify() == []
    assert 0.98 * NUM_PHOTOS < snapshot.num_rows <= NUM_PHOTOS
    table = pq.read_table(snapshot.shards[0].path, columns=["caption", "spare_captions", "query_ids"])
    assert sum(len(row["spare_captions"]) == 2 for row in table.to_pylist()) > 0.9 * table.num_rows

    recipe = TrainConfig(global_batch_size=64, epochs=12, learning_rate=1e-3, warmup_steps=50, num_workers=2)
    pretrain.main(PretrainJob(snapshot=snapshot.uri, output=str(folder / "pretrain"), train=recipe))
    losses = [json.loads(line)["loss"] for line in (folder / "pretrain" / "metrics.jsonl").read_text().splitlines()]
    assert sum(losses[-5:]) / 5 < 0.7 * sum(losses[:5]) / 5

    # Scores training photographs: after a minute of training, scores on others cannot be distinguished from chance
    training_set = folder / "sets" / "photos"
    training_set.mkdir(parents=True)
    (training_set / "dataset.json").write_text(json.dumps({"name": "photos", "kind": "retrieval"}))
    pq.write_table(photos.slice(0, NUM_SCORED).select(["image", "captions"]), training_set / "test.parquet")
    model = str(folder / "pretrain" / "model")
    job = BenchmarkJob(model=model, datasets=str(folder / "sets"), output=str(folder / "benchmark"), digits=False)
    benchmark.main(job)
    scores = json.loads((folder / "benchmark" / "results.json").read_text())["scores"]
    assert scores["photos/text_to_image_r@10"]["low"] > scores["photos/text_to_image_r@10"]["chance"], scores
    assert scores["photos/image_to_text_r@10"]["low"] > scores["photos/image_to_text_r@10"]["chance"], scores
