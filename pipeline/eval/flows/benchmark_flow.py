"""Encode evaluation sets on Ray and score them. Each image and text is encoded once, into a store of features.

The store is keyed by the hashes of the weights and of the set. One part of the store is one row group of images or one
block of texts, so a killed job resumes with its missing parts. Scores do not depend on the order in which parts end.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from cluster import parquet, storage
from cluster.parts import Output, Stage
from cluster.resources import Pool
from cluster.telemetry import Progress
from pipeline.eval.features.encoder import CLASS_SCORES, IMAGE_FEATURES, TEXT_FEATURES, Encoder, features_of
from pipeline.eval.protocols.suite import (
    Evaluation,
    prompt_features,
    prompts_by_class,
    score_classification,
    score_retrieval,
    texts_of,
)
from pipeline.eval.protocols.zero_shot import bag_probabilities, build_classifier, class_probabilities
from pipeline.eval.sets.evaluation_sets import (
    DESCRIPTION_FILE,
    LABELLED,
    SAMPLES_FILE,
    Dataset,
    Kind,
    check_samples,
    parse_description,
    serialise,
)
from pipeline.model.config import Objective
from pipeline.model.weights.loading import load_model
from pipeline.model.weights.model_folder import Model

TEXTS_PER_PART = 2_048
IMAGES = pa.schema([LABELLED.field("image")])


@dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """How images and texts are encoded. No option here changes a score."""

    pool: Pool = field(default_factory=Pool)
    """The actors. Each keeps the model in memory, on a GPU if the pool has GPUs."""
    batch_size: int = 64
    """Images or texts per forward pass."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"encode.batch_size = {self.batch_size}: must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Source:
    """An evaluation set without its images: description, location, labels or captions."""

    dataset: Dataset
    uri: str
    """URI of the set's test.parquet."""
    sha256: str
    """SHA-256 over the description and the samples."""
    row_groups: tuple[int, ...]
    """Number of samples in each row group."""
    labels: tuple[int, ...] = ()
    """Label of each sample, for classification."""
    captions: tuple[tuple[str, ...], ...] = ()
    """Captions of each sample, for retrieval."""

    @property
    def num_samples(self) -> int:
        """Number of samples in the set."""
        return sum(self.row_groups)


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One part to encode: row group `index` of the images at `source_uri`, or `texts` if that URI is empty."""

    stage: Stage
    index: int
    num_rows: int
    model_uri: str
    source_uri: str = ""
    first_sample: int = 0
    texts: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Store:
    """The features that one model computes of all sets: for each set a stage of images and a stage of texts.

    A caption model has no text features. For it the stage of images holds the scores of the set's classes.
    """

    uri: str
    model_uri: str
    model_sha256: str
    objective: Objective = "contrastive"

    def covers(self, source: Source) -> bool:
        """Whether the model can be scored on the set."""
        return covers(self.objective, source)

    def images(self, source: Source) -> Stage:
        """The stage of a set's images, one part per row group."""
        content = "scores" if self.objective == "caption" else "images"
        return Stage(self._stage_uri(source, content), len(source.row_groups))

    def texts(self, source: Source) -> Stage:
        """The stage of a set's texts, one part per block of texts."""
        return Stage(self._stage_uri(source, "texts"), len(_text_blocks(source)))

    def missing(self, source: Source) -> Iterator[Unit]:
        """Yield the parts of a set that are not encoded yet; none for a set that the model cannot be scored on."""
        if not self.covers(source):
            return
        stage, starts = self.images(source), accumulate(source.row_groups, initial=0)
        done = stage.complete()
        for index, (rows, start) in enumerate(zip(source.row_groups, starts, strict=False)):
            if index not in done:
                yield Unit(
                    stage=stage, index=index, num_rows=rows, model_uri=self.model_uri, source_uri=source.uri,
                    first_sample=start,
                )  # fmt: skip
        if self.objective == "caption":
            return
        stage = self.texts(source)
        done = stage.complete()
        for index, texts in enumerate(_text_blocks(source)):
            if index not in done:
                yield Unit(stage=stage, index=index, num_rows=len(texts), model_uri=self.model_uri, texts=texts)

    def _stage_uri(self, source: Source, content: str) -> str:
        set_folder = f"{source.dataset.name}-{source.sha256[:16]}"
        return storage.join(self.uri, set_folder, self.model_sha256[:16], content)


class EncodeUnits:
    """Actor that reads the images or texts of a unit, encodes them and writes the part. Keeps the last unit's model."""

    def __init__(self, prompts: Mapping[str, Sequence[Sequence[str]]], batch_size: int, device: str) -> None:
        self._prompts = prompts
        self._batch_size = batch_size
        self._device = device
        self._model_uri = ""

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Encode a table of units. Returns one row per unit: the number of rows in its part."""
        num_rows = []
        for row in rows.to_pylist():
            unit = Unit(**row | {"stage": Stage(**row["stage"])})
            if unit.model_uri != self._model_uri:
                self._encoder = Encoder(open_model(unit.model_uri), self._batch_size, self._device)
                self._model_uri = unit.model_uri
            table = self._encoder.encode_texts(unit.texts) if unit.texts else self._encode_images(unit)
            unit.stage.write(unit.index, table)
            num_rows.append(table.num_rows)
        return pa.table({"num_rows": pa.array(num_rows, pa.int64())})

    def _encode_images(self, unit: Unit) -> pa.Table:
        images = read_images(unit.source_uri, unit.index)["image"].to_pylist()
        if self._encoder.network.config.objective == "caption":
            prompts = self._prompts[unit.source_uri]
            return self._encoder.score_classes(images, unit.first_sample, unit.source_uri, prompts)
        return self._encoder.encode_images(images, unit.first_sample, unit.source_uri)


def open_sets(folder: str) -> list[Source]:
    """Open and check all evaluation sets below a folder, sorted by name.

    Raises:
        FileNotFoundError: the folder has no set, or a set has no samples file.
        ValueError: a set does not match its description; the message names the file.
    """
    sources = [_open_set(description) for description in storage.list_files(folder, suffixes=[DESCRIPTION_FILE])]
    return sorted(sources, key=lambda source: source.dataset.name)


def hashes_by_name(sources: Sequence[Source], folder: str) -> dict[str, str]:
    """Map the name of each set to its SHA-256.

    Raises:
        ValueError: two sets have the same name; the message names the option `datasets` and its value `folder`.
    """
    names = sorted(source.dataset.name for source in sources)
    if len(set(names)) < len(names):
        raise ValueError(f"datasets={folder}: two sets have the same name ({', '.join(names)}); rename one")
    return {source.dataset.name: source.sha256 for source in sources}


def read_images(uri: str, row_group: int) -> pa.Table:
    """Read the column `image` of one row group of a set's test.parquet.

    Raises:
        ValueError: the row group is damaged, or a sample has no image. The message names the file.
    """
    filesystem, path = storage.filesystem(uri)
    with (
        parquet.reading(uri),
        pq.ParquetFile(path, filesystem=filesystem, page_checksum_verification=True) as file,
    ):
        images = file.read_row_group(row_group, columns=["image"])
        first = sum(file.metadata.row_group(index).num_rows for index in range(row_group))
    if images["image"].null_count:
        missing = first + images["image"].is_null().to_pylist().index(True)
        raise ValueError(f"{uri}: sample {missing} has no image")
    return parquet.cast(images, IMAGES, uri)


def write_set(folder: str, dataset: Dataset, samples: pa.Table) -> None:
    """Write a set to its own folder below `folder`, the description last."""
    files = serialise(dataset, samples)
    for name in (SAMPLES_FILE, DESCRIPTION_FILE):
        storage.write_bytes(storage.join(folder, dataset.name, name), files[name])


def hash_model(uri: str) -> str:
    """Compute the SHA-256 over all files of a model's or detector's folder: weights, configuration, tokenizer."""
    digest = hashlib.sha256()
    for file in storage.list_files(uri):
        digest.update(file.removeprefix(storage.absolute(uri)).encode())
        digest.update(hashlib.sha256(storage.read_bytes(file)).digest())
    return digest.hexdigest()


def open_model(uri: str) -> Model:
    """Load a model from a local path or an s3:// URI. Raises as `pipeline.load`.

    A remote model is copied to a temporary folder first, because weights are read from files.
    """
    if not storage.is_s3(uri):
        return load_model(storage.absolute(uri))
    with tempfile.TemporaryDirectory() as scratch:
        for file in storage.list_files(uri):
            Path(scratch, file.rsplit("/", 1)[1]).write_bytes(storage.read_bytes(file))
        return load_model(scratch)


def open_store(uri: str, model_uri: str) -> Store:
    """Open the store of a model's features below the folder `uri`. Raises as `open_model`."""
    model_uri = storage.absolute(model_uri)
    objective = open_model(model_uri).network.config.objective
    return Store(uri=uri, model_uri=model_uri, model_sha256=hash_model(model_uri), objective=objective)


def encode(sources: Sequence[Source], stores: Sequence[Store], config: EncodeConfig) -> None:
    """Encode all sets with the models of all stores. Parts that exist already are not encoded again.

    Raises:
        ValueError: an image cannot be read, or a model computes embeddings that are not finite.
    """
    units = [unit for store in stores for source in sources for unit in store.missing(source)]
    if not units:
        return
    encoded: Any = ray.data.from_items([asdict(unit) for unit in units], override_num_blocks=len(units)).map_batches(
        EncodeUnits,
        fn_constructor_kwargs={
            "prompts": {source.uri: prompts_by_class(source.dataset) for source in sources},
            "batch_size": config.batch_size,
            "device": "cuda" if config.pool.gpus else "cpu",
        },
        **config.pool.map_batches_arguments(),
    )
    with Progress("encode", sum(unit.num_rows for unit in units), "samples") as progress:
        for batch in encoded.iter_batches(batch_size=None, batch_format="pyarrow"):
            progress.update(sum(batch["num_rows"].to_pylist()))


def covers(objective: Objective, source: Source) -> bool:
    """Whether models of an objective can be scored on a set. Retrieval needs embeddings of images and of texts."""
    return source.dataset.kind is Kind.CLASSIFICATION or objective.startswith("contrastive")


def evaluate(source: Source, store: Store) -> Evaluation:
    """Score one set that the store covers, from the features that `encode` wrote."""
    captioner = store.objective == "caption"
    images = Output.of(store.images(source)).table(CLASS_SCORES if captioner else IMAGE_FEATURES).sort_by("sample")
    texts = None if captioner else Output.of(store.texts(source)).table(TEXT_FEATURES)
    return score(source, store.objective, images, texts)


def score(source: Source, objective: Objective, images: pa.Table, texts: pa.Table | None) -> Evaluation:
    """Score one set from a model's features.

    Args:
        source: the set.
        objective: objective of the model, which must cover the set.
        images: IMAGE_FEATURES of all samples in order, or CLASS_SCORES for a caption model.
        texts: TEXT_FEATURES of the set's texts; None for a caption model.
    """
    assert images["sample"].to_pylist() == list(range(source.num_samples)), f"{source.uri}: samples are missing"
    if texts is None:
        probabilities = features_of(images, "scores").softmax(dim=1)
        return score_classification(source.dataset, source.labels, probabilities)
    image_features = features_of(images)
    text_features = dict(zip(texts["text"].to_pylist(), features_of(texts), strict=True))
    if source.dataset.kind is Kind.RETRIEVAL:
        return score_retrieval(source.dataset, source.captions, image_features, text_features)
    prompts = prompt_features(source.dataset, text_features)
    if objective == "bag":
        probabilities = bag_probabilities(image_features, prompts)
    else:
        scale = texts["logit_scale"][0].as_py()
        probabilities = class_probabilities(image_features, build_classifier(prompts), scale)
    return score_classification(source.dataset, source.labels, probabilities)


def write_predictions(folder: str, evaluations: Mapping[str, Evaluation]) -> None:
    """Write the predictions of all samples, one Parquet file per set, so that metrics can be recomputed."""
    for name, evaluation in evaluations.items():
        storage.write_bytes(storage.join(folder, f"{name}.parquet"), parquet.encode(evaluation.predictions))


def read_predictions(folder: str, name: str) -> pa.Table:
    """Read the predictions of one set that `write_predictions` wrote."""
    data = storage.read_bytes(storage.join(folder, f"{name}.parquet"))
    return pq.read_table(pa.BufferReader(data), page_checksum_verification=True)


def _text_blocks(source: Source) -> list[tuple[str, ...]]:
    texts = texts_of(source.dataset, source.captions)
    return [tuple(texts[start : start + TEXTS_PER_PART]) for start in range(0, len(texts), TEXTS_PER_PART)]


def _open_set(description: str) -> Source:
    dataset = parse_description(storage.read_bytes(description), description)
    uri = storage.absolute(description.removesuffix(DESCRIPTION_FILE) + SAMPLES_FILE)
    filesystem, path = storage.filesystem(uri)
    digest = hashlib.sha256(json.dumps(asdict(dataset)).encode())
    with storage.open_input(uri) as content:
        digest.update(hashlib.file_digest(content, "sha256").digest())
    texts_and_labels = pa.schema([field for field in dataset.schema if field.name != "image"])
    with parquet.reading(uri), pq.ParquetFile(path, filesystem=filesystem) as file:
        parquet.check_types(file.schema_arrow, dataset.schema, uri)
        row_groups = tuple(file.metadata.row_group(index).num_rows for index in range(file.num_row_groups))
        samples = file.read(columns=texts_and_labels.names)
    samples = parquet.cast(samples, texts_and_labels, uri)
    check_samples(dataset, samples, uri)
    is_classification = dataset.kind is Kind.CLASSIFICATION
    return Source(
        dataset=dataset,
        uri=uri,
        sha256=digest.hexdigest(),
        row_groups=row_groups,
        labels=tuple(samples["label"].to_pylist()) if is_classification else (),
        captions=() if is_classification else tuple(map(tuple, samples["captions"].to_pylist())),
    )
