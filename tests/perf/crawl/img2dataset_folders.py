"""Read folders that img2dataset itself has written: `python -m tests.perf.crawl.img2dataset_folders`.

img2dataset downloads five URLs from a loopback server, one of them missing, in both of its formats. Both folders must
give the same candidates: an image for each success and a URL for the failure. Imported, both must give the same pairs:
the images and captions of the successes, byte for byte.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.csv

from jobs.options.inputs import list_inputs
from pipeline.data.flows.import_export_flow import list_pairs, read_pairs
from pipeline.data.flows.input_files import check_inputs, read_input
from pipeline.data.sources.extract import ExtractConfig
from tests.perf.corpus.rows import environment
from tests.web import picture, web

_PEER = """
import sys
from img2dataset import download
for output_format in sys.argv[3:]:
    download(url_list=sys.argv[1], output_folder=f"{sys.argv[2]}/{output_format}", output_format=output_format,
             input_format="csv", url_col="url", caption_col="caption", image_size=64, processes_count=1,
             thread_count=4, number_sample_per_shard=3, retries=0)
"""
FORMATS = ("parquet", "webdataset")
NUM_IMAGES = 4


def candidates(folder: Path) -> pa.Table:
    """Read the candidates of a folder as a crawl does."""
    inputs = list_inputs(str(folder), "")
    check_inputs(inputs)
    found = pa.concat_tables([read_input(uri, ExtractConfig()) for uri in inputs])
    return found.select(["pair_id", "url", "caption", "image", "reason"]).sort_by("pair_id")


def imported(folder: Path) -> pa.Table:
    """Read the pairs of a folder as jobs.import_pairs does."""
    found = pa.concat_tables([read_pairs(uri) for uri in list_pairs(str(folder))])
    return found.filter(found["reason"].is_null()).sort_by("pair_id")


def compare(folder: Path) -> int:
    """Run img2dataset and compare its folders; returns the number of candidates."""
    urls = [f"http://host-{number}.example/{number}.jpg" for number in range(NUM_IMAGES + 1)]
    table = pa.table({"url": urls, "caption": [f"a picture of the number {number}" for number in range(len(urls))]})
    pyarrow.csv.write_csv(table, folder / "urls.csv")
    with (
        web(folder / "site", {url: picture(seed) for seed, url in enumerate(urls[:NUM_IMAGES])}) as site,
        environment(http_proxy=f"http://{site.address}", NO_ALBUMENTATIONS_UPDATE="1", WANDB_MODE="offline"),
    ):
        command = [sys.executable, "-c", _PEER, str(folder / "urls.csv"), str(folder), *FORMATS]
        subprocess.run(command, check=True, capture_output=True)
    found = [candidates(folder / name) for name in FORMATS]
    assert found[0] == found[1]
    rows = {row["url"]: row for row in found[0].to_pylist()}
    assert rows.keys() == set(urls)
    assert [bool(rows[url]["image"]) for url in urls] == [True] * NUM_IMAGES + [False]
    assert {row["reason"] for row in rows.values()} == {None}
    pairs = [imported(folder / name) for name in FORMATS]
    assert pairs[0] == pairs[1]
    assert {row["url"]: (row["image"], row["caption"]) for row in pairs[0].to_pylist()} == {
        url: (rows[url]["image"], rows[url]["caption"]) for url in urls[:NUM_IMAGES]
    }
    return len(rows)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        print(f"{compare(Path(name))} candidates and {NUM_IMAGES} pairs in each format")
