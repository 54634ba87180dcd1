import io
import json
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import pipeline
from cluster import storage
from cluster.resources import Pool
from pipeline.eval.features.encoder import IMAGE_FEATURES, TEXT_FEATURES
from pipeline.eval.flows.benchmark_flow import (
    EncodeConfig,
    EncodeUnits,
    Source,
    Store,
    encode,
    evaluate,
    hash_model,
    open_model,
    open_sets,
    open_store,
    read_images,
    write_set,
)
from pipeline.eval.protocols.suite import prompts_by_class, texts_of
from pipeline.eval.sets.evaluation_sets import CAPTIONED, Dataset, Kind
from pipeline.model.config import Objective
from pipeline.model.images.preprocess import preprocess_for
from pipeline.model.objectives.caption_model import Captioner
from pipeline.model.objectives.clip import CLIP
from tests.cluster.ray_private.free_cpus import wait_until_all_cpus_are_free
from tests.pipeline.eval.models import save_small_model
from tests.pipeline.eval.pictures import COLOURS, PAIRS, SHAPES, draw, make_sets

CONFIG = EncodeConfig(pool=Pool(size=2), batch_size=4)


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    make_sets(tmp_path / "sets")
    return tmp_path / "sets"


def not_utf8() -> pa.Array:
    """Two strings, of which the first is Latin-1 (apache/arrow#29635, duckdb/duckdb#1932, parquet2#108)."""
    return pa.Array.from_buffers(pa.string(), 2, pa.array([b"caf\xe9", b"b"]).buffers())


def store_of(folder: Path, model_sha256: str = "ab" * 32) -> Store:
    return Store(uri=str(folder / "features"), model_uri="model", model_sha256=model_sha256)


def fill_by_hand(store: Store, source: Source, part_order: list[int]) -> None:
    """Write features that identify their sample and text. Part i gets the rows of row group `part_order[i]`."""
    starts = [sum(source.row_groups[:index]) for index in range(len(source.row_groups))]
    for index, group in enumerate(part_order):
        samples = list(range(starts[group], starts[group] + source.row_groups[group]))
        features = [[float(source.labels[sample] == label) for label in range(2)] for sample in samples]
        store.images(source).write(index, pa.table({"sample": samples, "features": features}, schema=IMAGE_FEATURES))
    texts = texts_of(source.dataset, source.captions)
    features = [[float(index == 0), float(index == 1)] for index in range(len(texts))]
    columns = {"text": texts, "features": features, "logit_scale": [10.0] * len(texts)}
    store.texts(source).write(0, pa.table(columns, schema=TEXT_FEATURES))


def test_sets_are_opened_sorted_by_name_and_without_their_images(sets: Path) -> None:
    colours, pairs = open_sets(str(sets))
    assert (colours.dataset.name, pairs.dataset.name) == ("colours", "pairs")
    assert colours.row_groups == (4, 4, 4, 3)
    assert [colours.dataset.classes[label] for label in colours.labels[:3]] == ["red", "red", "red"]
    assert pairs.captions[0] == ("a red circle", "one circle in red")
    assert (colours.num_samples, pairs.num_samples) == (15, 15)


def test_the_hash_of_a_set_covers_its_prompts_and_images(sets: Path) -> None:
    before = {source.dataset.name: source.sha256 for source in open_sets(str(sets))}
    description = sets / "colours" / "dataset.json"
    description.write_text(json.dumps(json.loads(description.read_text()) | {"templates": ["the colour {}"]}))
    samples = pq.read_table(sets / "pairs" / "test.parquet")
    pq.write_table(samples.slice(1), sets / "pairs" / "test.parquet")
    after = {source.dataset.name: source.sha256 for source in open_sets(str(sets))}
    assert all(before[name] != after[name] for name in ("colours", "pairs"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a table", r"colours/test\.parquet: cannot be read as Parquet"),
        (None, r"colours/test\.parquet: column 'label' is missing"),
    ],
)
def test_a_set_that_does_not_match_its_description_is_refused(sets: Path, content: bytes | None, message: str) -> None:
    path = sets / "colours" / "test.parquet"
    if content is None:
        pq.write_table(pa.table({"image": [b""]}), path)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        open_sets(str(sets))


HUGGING_FACE = pa.array([{"bytes": b"x", "path": "0.jpg"}, {"bytes": b"y", "path": None}])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": HUGGING_FACE}, "column 'image' has the type struct<.*>; it must be large_binary"),
        ({"image": pa.array(["a.jpg", "b.jpg"])}, "column 'image' has the type string"),
        ({"label": pa.array(["red", "blue"])}, "column 'label' has the type string; it must be int32"),
        ({"label": pa.array([0.0, 1.0])}, "column 'label' has the type double"),
        ({"label": pa.array(["a", "b"]).dictionary_encode()}, "column 'label' has the type dictionary"),
        ({"label": pa.array([0, 2**40])}, "column 'label' has values that are not int32"),
        ({"label": pa.array([0, None], pa.int32())}, "sample 1 has no label"),
    ],
)
def test_a_set_with_values_of_another_type_is_refused(
    tmp_path: Path, columns: dict[str, pa.Array], message: str
) -> None:
    """Such as images from the Hub (huggingface/datasets#5869)."""
    source = two_classes(tmp_path)
    good = {"image": pa.array([b"x", b"y"]), "label": pa.array([0, 1], pa.int32())}
    pq.write_table(pa.table(good | columns), source.uri)
    with pytest.raises(ValueError, match=rf"two/test\.parquet: {message}"):
        open_sets(str(tmp_path))


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        (pa.ListArray.from_arrays([0, 1, 2], not_utf8()), "column 'captions' has values that are not list.*UTF8"),
        (pa.array(["a", "b"]), "column 'captions' has the type string"),
        (pa.array([[1], [2]]), "column 'captions' has the type list<element: int64>"),
        (pa.array([["a"], [None]]), "sample 1 has a caption that is null"),
    ],
)
def test_captions_that_are_no_texts_are_refused(tmp_path: Path, captions: pa.Array, message: str) -> None:
    write_set(str(tmp_path), Dataset(name="pairs", kind=Kind.RETRIEVAL), CAPTIONED.empty_table())
    pq.write_table(pa.table({"image": pa.array([b"x", b"y"]), "captions": captions}), tmp_path / "pairs/test.parquet")
    with pytest.raises(ValueError, match=rf"pairs/test\.parquet: {message}"):
        open_sets(str(tmp_path))


def test_labels_and_captions_of_other_widths_are_read(tmp_path: Path) -> None:
    source = two_classes(tmp_path)
    pq.write_table(pa.table({"image": pa.array([b"x"], pa.binary()), "label": pa.array([1], pa.uint8())}), source.uri)
    captions = pa.array([["a", "b"]], pa.large_list(pa.large_string()))
    write_set(str(tmp_path), Dataset(name="pairs", kind=Kind.RETRIEVAL), CAPTIONED.empty_table())
    pq.write_table(pa.table({"image": pa.array([b"x"]), "captions": captions}), tmp_path / "pairs/test.parquet")
    pairs, two = open_sets(str(tmp_path))
    assert (two.labels, pairs.captions) == ((1,), (("a", "b"),))
    assert read_images(two.uri, 0)["image"].to_pylist() == [b"x"]


def test_a_damaged_page_and_a_missing_image_name_the_file(tmp_path: Path) -> None:
    source = two_classes(tmp_path)
    images = pa.array([b"x" * 500] * 5 + [None], pa.large_binary())
    samples = pa.table({"image": images, "label": [0] * 6})
    pq.write_table(samples, source.uri, row_group_size=4, write_page_checksum=True, compression="none")
    with pytest.raises(ValueError, match=rf"{source.uri}: sample 5 has no image"):
        read_images(source.uri, 1)
    data = bytearray(Path(source.uri).read_bytes())
    data[data.index(b"xxxx")] ^= 1
    Path(source.uri).write_bytes(data)
    with pytest.raises(ValueError, match=rf"{source.uri}: cannot be read as Parquet .*CRC"):
        read_images(source.uri, 0)


def test_a_folder_without_sets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing at"):
        open_sets(str(tmp_path / "none"))


def test_the_hash_of_a_model_covers_names_and_contents(tmp_path: Path) -> None:
    for name, weights in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(weights)
        (tmp_path / name / "config.json").write_bytes(b"{}")
    first = hash_model(str(tmp_path / "a"))
    assert first == hash_model(f"file://{tmp_path}/b/")
    assert first != hash_model(str(tmp_path / "c"))
    (tmp_path / "b" / "config.json").rename(tmp_path / "b" / "tokenizer.json")
    assert first != hash_model(str(tmp_path / "b"))


def two_classes(folder: Path) -> Source:
    dataset = Dataset(name="two", kind=Kind.CLASSIFICATION, classes=("x", "y"), templates=("{}",))
    write_set(str(folder), dataset, pa.table({"image": [b""] * 700, "label": [0, 1] * 350}))
    (source,) = open_sets(str(folder))
    return source


def test_scores_do_not_depend_on_which_part_has_which_samples(tmp_path: Path) -> None:
    source = two_classes(tmp_path / "sets")
    source = replace(source, row_groups=(200, 200, 200, 100), labels=(*source.labels[:-100], *[1] * 100))
    ordered, shuffled = store_of(tmp_path / "a"), store_of(tmp_path / "b")
    fill_by_hand(ordered, source, [0, 1, 2, 3])
    fill_by_hand(shuffled, source, [2, 3, 0, 1])
    assert evaluate(source, ordered).scores["two"].value == 1.0
    assert evaluate(source, ordered) == evaluate(source, shuffled)


def test_only_missing_parts_are_encoded(tmp_path: Path) -> None:
    source = two_classes(tmp_path / "sets")
    store = store_of(tmp_path)
    assert [(unit.index, unit.num_rows, unit.first_sample) for unit in store.missing(source)] == [
        (0, 256, 0),
        (1, 256, 256),
        (2, 188, 512),
        (0, 2, 0),
    ]
    fill_by_hand(store, source, [0, 1, 2])
    assert list(store.missing(source)) == []
    (Path(store.images(source).uri) / "_part-00001.json").unlink()
    (unit,) = store.missing(source)
    assert (unit.stage, unit.index) == (store.images(source), 1)
    assert len(list(store_of(tmp_path, "cd" * 32).missing(source))) == 4
    assert len(list(store.missing(replace(source, sha256="ef" * 32)))) == 4


def test_an_incomplete_store_is_not_scored(tmp_path: Path) -> None:
    source = two_classes(tmp_path / "sets")
    store = store_of(tmp_path)
    fill_by_hand(store, source, [0, 1])
    with pytest.raises(FileNotFoundError, match=r"parts \[2\] are missing"):
        evaluate(source, store)
    store.images(source).write(2, pa.table({"sample": [0], "features": [[0.0, 1.0]]}, schema=IMAGE_FEATURES))
    with pytest.raises(AssertionError, match="samples are missing"):
        evaluate(source, store)


@pytest.mark.usefixtures("ray_local")
def test_scores_from_ray_equal_those_of_a_plain_loop(sets: Path, tmp_path: Path, small_model: Path) -> None:
    sources = open_sets(str(sets))
    store = open_store(str(tmp_path / "features"), str(small_model))
    encode(sources, [store], CONFIG)
    assert [list(store.missing(source)) for source in sources] == [[], []]
    colours, pairs = (evaluate(source, store) for source in sources)

    model, preprocess, tokenize = pipeline.load(small_model)
    with torch.no_grad():
        pictures = [Image.open(io.BytesIO(draw(shape, colour))) for colour in COLOURS for shape in SHAPES]
        images = torch.cat([model.encode_image(preprocess(picture)[None]) for picture in pictures])
        images = images / images.norm(dim=1, keepdim=True)
        rows = []
        for colour in COLOURS:
            prompts = [model.encode_text(tokenize([t.format(colour)]))[0] for t in ("a {} thing", "{}")]
            mean = sum((prompt / prompt.norm() for prompt in prompts), torch.zeros(())) / 2
            rows.append(mean / mean.norm())
        probabilities = (model.logit_scale.exp() * images @ torch.stack(rows).T).softmax(dim=1)
        texts = torch.cat([model.encode_text(tokenize([text])) for own in PAIRS for text in own])
    predicted = [list(COLOURS)[index] for index in probabilities.argmax(dim=1)]
    truth = [colour for colour in COLOURS for _ in SHAPES]
    assert colours.predictions["predicted"].to_pylist() == predicted
    assert colours.scores["colours"].value == pytest.approx(sum(map(str.__eq__, predicted, truth)) / 15)
    best = torch.tensor([row[0] for row in colours.predictions["probabilities"].to_pylist()])
    torch.testing.assert_close(best, probabilities.amax(dim=1), atol=1e-4, rtol=0)

    cosine = torch.nn.functional.cosine_similarity(images[:, None], texts[None], dim=-1)
    hits = [
        max(cosine[i].argsort(descending=True)[:5].tolist().count(t) for t in (2 * i, 2 * i + 1)) for i in range(15)
    ]
    assert pairs.scores["pairs/image_to_text_r@5"].value == pytest.approx(sum(hits) / 15)


@pytest.mark.parametrize("objective", ["bag", "caption"])
def test_likelihood_objectives_are_scored_on_classes_but_not_on_retrieval(
    objective: Objective, sets: Path, tmp_path: Path
) -> None:
    """The expected values come from a loop over images and prompts."""
    save_small_model(tmp_path / "model", objective)
    colours, pairs = open_sets(str(sets))
    store = open_store(str(tmp_path / "features"), str(tmp_path / "model"))
    assert (store.covers(colours), store.covers(pairs)) == (True, False)
    assert list(store.missing(pairs)) == []
    units = pa.Table.from_pylist([asdict(unit) for unit in store.missing(colours)])
    EncodeUnits({colours.uri: prompts_by_class(colours.dataset)}, batch_size=4, device="cpu")(units)
    assert list(store.missing(colours)) == []
    predictions = evaluate(colours, store).predictions

    model = open_model(str(tmp_path / "model"))
    network, preprocess = model.network.eval(), preprocess_for(model.network.config.image.image_size)
    assert not isinstance(network, CLIP)
    pictures = [Image.open(io.BytesIO(draw(shape, colour))) for colour in COLOURS for shape in SHAPES]
    for row, picture in zip(predictions.to_pylist(), pictures, strict=True):
        pixels = preprocess(picture)[None]
        with torch.no_grad():
            image = network.encode_image(pixels) if isinstance(network, Captioner) else pixels
            logits = [
                sum(float(network.log_likelihoods(image, model.tokenizer.encode([text])[0])) for text in texts) / 2
                for texts in prompts_by_class(colours.dataset)
            ]
        probabilities = torch.tensor(logits).softmax(dim=0)
        assert row["predicted"] == list(COLOURS)[int(probabilities.argmax())]
        assert row["probabilities"][0] == pytest.approx(float(probabilities.max()), rel=1e-3)


@pytest.mark.usefixtures("ray_local")
def test_an_unreadable_image_stops_the_encoding_and_is_named(sets: Path, tmp_path: Path, small_model: Path) -> None:
    path = sets / "colours" / "test.parquet"
    samples = pq.read_table(path)
    images = [*samples["image"].to_pylist()[:13], b"<html>", b"<html>"]
    pq.write_table(samples.set_column(0, "image", pa.array(images, pa.large_binary())), path, row_group_size=4)
    with pytest.raises(ValueError, match=rf"{path}: the image of sample 13 cannot be read") as caught:
        encode(open_sets(str(sets)), [open_store(str(tmp_path), str(small_model))], EncodeConfig(batch_size=4))
    wait_until_all_cpus_are_free()
    assert caught.tb is not None, "the error still holds its traceback"


def test_sets_model_and_features_can_be_on_s3(s3: str, tmp_path: Path, small_model: Path) -> None:
    make_sets(tmp_path)
    for file in (*tmp_path.rglob("*.json"), *tmp_path.rglob("*.parquet")):
        storage.write_bytes(f"{s3}/sets/{file.relative_to(tmp_path)}", file.read_bytes())
    for file in small_model.iterdir():
        storage.write_bytes(f"{s3}/model/{file.name}", file.read_bytes())
    assert hash_model(f"{s3}/model") == hash_model(str(small_model))
    evaluations = []
    for folder, model in ((s3, f"{s3}/model"), (str(tmp_path), str(small_model))):
        source = open_sets(f"{folder}/sets" if folder == s3 else folder)[0]
        store = open_store(f"{folder}/features", model)
        units = pa.Table.from_pylist([asdict(unit) for unit in store.missing(source)])
        written = EncodeUnits({}, batch_size=4, device="cpu")(units)
        assert written["num_rows"].to_pylist() == [4, 4, 4, 3, 10]
        evaluations.append(evaluate(source, store))
    assert evaluations[0] == evaluations[1]


def test_a_batch_size_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match=r"encode\.batch_size = 0"):
        EncodeConfig(batch_size=0)
