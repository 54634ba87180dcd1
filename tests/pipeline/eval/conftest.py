"""Fixtures: an invented run with all content that a report can show, including hostile texts, and a small model."""

import math
import random
from pathlib import Path

import pytest

from pipeline.eval.protocols.statistics import Score, proportion_interval
from pipeline.eval.report.link_rot import LinkCount
from pipeline.eval.report.objectives import compare
from pipeline.eval.report.overlap import Contamination, contamination
from pipeline.eval.report.queries import QueryCount
from pipeline.eval.report.report import Example, KeptPair, RejectedPair, ReportInputs, SnapshotFacts, Stage
from tests.pipeline.eval.models import save_small_model
from tests.pipeline.eval.objective_rows import score_rows
from tests.pipeline.eval.pictures import COLOURS, SHAPES, draw
from tests.pipeline.eval.predictions import classified

HOSTILE = '<img src=x onerror="alert(1)"><script>alert(2)</script> &amp; "quotes"'


def score_of(successes: int, trials: int, chance: float, metric: str = "accuracy") -> Score:
    low, high = proportion_interval(successes, trials)
    return Score(value=successes / trials, low=low, high=high, chance=chance, metric=metric, num_samples=trials)


def make_metrics() -> list[dict[str, float]]:
    rng = random.Random(0)
    rows = []
    for step in range(1, 601):
        loss = 1.1 + 4.4 * math.exp(-step / 160) + rng.gauss(0, 0.09)
        accuracy = 0.62 * (1 - math.exp(-step / 220))
        rows.append(
            {
                "step": step,
                "epoch": step // 20,
                "loss": loss,
                "accuracy_image_to_text": max(0, accuracy + rng.gauss(0, 0.025)),
                "accuracy_text_to_image": max(0, accuracy - 0.02 + rng.gauss(0, 0.025)),
                "logit_scale": 14.3 + step / 80,
                "learning_rate": 1e-3 * min(step / 50, 0.5 * (1 + math.cos(math.pi * step / 600))),
                "gradient_norm": 0.6 + 1.5 * math.exp(-step / 90) + rng.random() / 5,
                "samples_per_second": 810 + rng.gauss(0, 30),
            }
        )
    return rows


def make_queries() -> list[QueryCount]:
    words = ["circle", "square", "red", "blue", "two", "small", "triangle", "photo", "picture", "left", "word", "seven"]
    sources = ["unigram", "unigram", "wordnet", "unigram", "bigram", "wordnet", "title"]
    queries = []
    for rank in range(1, 401):
        text = words[rank - 1] if rank <= len(words) else f"query {rank}"
        before = round(2_400 / rank**0.9)
        queries.append(
            QueryCount(text, sources[rank % 7 if rank > 12 else 0], before, round(min(before, 240 + before / 9)))
        )
    queries += [QueryCount(f"unmatched {index}", "wordnet", 0, 0) for index in range(37)]
    return [*queries, QueryCount(HOSTILE, "unigram", 1, 1)]


def make_link_rot() -> list[LinkCount]:
    """Counts of 14 domains, the largest first, of pages of 14 years, and of pages without a year."""
    names = [
        "cdn.example",
        "shop.example",
        "<b>not-a-domain</b>",
        *(f"photos-{number}.example" for number in range(11)),
    ]
    alive = [0.93, 0.12, 0.78, 0.97, 0.99, 0.83, 0.55, 0.71, 0.4, 0.9, 0.05, 0.6, 0.5, 0.5]
    rows = [("domain", name, round(420_000 / rank**1.1), alive[rank - 1]) for rank, name in enumerate(names, 1)]
    rows += [("year", str(year), 900 * (year - 2010), 0.28 + 0.05 * (year - 2013)) for year in range(2013, 2027)]
    counts = []
    for by, name, tried, share in [*rows, ("year", None, 310, 0.6)]:
        kept = round(tried * share)
        permanent, transient, policy = ((tried - kept) * part // 10 for part in (5, 2, 2))
        refused = tried - kept - permanent - transient - policy
        fates = {"permanent": permanent, "transient": transient, "policy": policy, "image_refused": refused}
        counts.append(LinkCount(by=by, name=name, tried=tried, kept=kept, **fates))
    return counts


def make_overlap() -> list[Contamination]:
    """Sets with no, little and much overlap."""
    rows = {  # overlapping samples, correct ones among them, clean samples, correct ones among them
        "rendered_shape": (0, 0, 400, 352),
        "rendered_colour": (61, 60, 439, 427),
        "rendered_digit": (104, 21, 396, 40),
        "sklearn_digits": (40, 5, 1_757, 266),
        "rendered_count": (5, 4, 245, 94),
        HOSTILE: (9, 3, 291, 100),
    }
    sets = []
    for name, (num_overlapping, hits, num_clean, clean_hits) in rows.items():
        right = [*(i < hits for i in range(num_overlapping)), *(i < clean_hits for i in range(num_clean))]
        predictions = classified([bool(hit) for hit in right])
        sets.append(contamination(name, predictions, range(num_overlapping)))
    return sets


@pytest.fixture(scope="session")
def report_inputs() -> ReportInputs:
    scenes = [(shape, colour) for colour in COLOURS for shape in SHAPES]
    url = "http://gallery-03.example/pictures/2024/{}.jpg"
    kept = [
        KeptPair(draw(shape, colour), f"a large {colour} {shape} on a pale background", url.format(f"{colour}-{shape}"))
        for shape, colour in scenes
    ]
    kept.append(KeptPair(draw("circle", "red", "PNG"), HOSTILE, 'javascript:alert("3")'))
    rejected = [
        RejectedPair(
            draw("square", "red"), "a red square", url.format("copy"), "same picture as a better pair", "dedupe"
        ),
        RejectedPair(None, "IMG_0231.jpg", url.format("IMG_0231"), "caption is a file name", "caption rules"),
        RejectedPair(None, "a green circle", url.format("private/x"), "forbidden by robots.txt", "fetch"),
        RejectedPair(None, "a lost page", "http://[broken/" + "long/" * 40, "not found (404, 410)", "fetch"),
        RejectedPair(None, HOSTILE, HOSTILE, "image has too many pixels", "image"),
        RejectedPair(None, "", url.format("none"), "caption is empty", "caption rules"),
    ]
    losses: list[tuple[str, dict[str, int]]] = [
        ("extract", {"page has no image with a text": 180, "revisit record": 40, "record is not HTML": 12}),
        ("caption rules", {"caption is a file name": 140, "caption is boilerplate": 92, "caption is empty": 37}),
        ("match", {"no query occurs in the caption": 61}),
        ("dedupe", {"same address as a better pair": 148}),
        ("balance", {"none of its queries draws it": 169}),
        ("fetch", {"not found (404, 410)": 101, "forbidden by robots.txt": 74, "connection failed": 40, "timeout": 22}),
        ("image", {"content is not a known image type": 6, HOSTILE: 3}),
        ("shards", {}),
    ]
    rows, funnel = 3_412, []
    for name, dropped in losses:
        funnel.append(Stage(name, rows, rows - sum(dropped.values()), dropped))
        rows = funnel[-1].kept
    scores = {
        "rendered_shape": score_of(352, 400, 1 / 8),
        "rendered_colour": score_of(487, 500, 1 / 10),
        "rendered_count": score_of(98, 250, 1 / 5),
        "rendered_digit": score_of(61, 500, 1 / 10),
        "sklearn_digits": score_of(271, 1_797, 1 / 10),
        "rendered_pairs/image_to_text_r@1": score_of(71, 400, 1 / 400, "r@1"),
        "rendered_pairs/image_to_text_r@5": score_of(160, 400, 5 / 400, "r@5"),
        "rendered_pairs/image_to_text_r@10": score_of(221, 400, 10 / 400, "r@10"),
        "rendered_pairs/text_to_image_r@1": score_of(64, 400, 1 / 400, "r@1"),
        "rendered_pairs/text_to_image_r@5": score_of(151, 400, 5 / 400, "r@5"),
        "rendered_pairs/text_to_image_r@10": score_of(214, 400, 10 / 400, "r@10"),
    }
    examples = []
    for index, (shape, colour) in enumerate(scenes[:12]):
        guesses = [(name, p) for name, p in zip(SHAPES, (0.1, 0.06, 0.03), strict=True) if name != shape]
        if index % 2:
            guesses = [*guesses[:1], (shape, 0.22), *guesses[1:]]
            guesses[0] = (guesses[0][0], 0.58)
        else:
            guesses = [(shape, 0.83), *guesses]
        examples.append(Example(draw(shape, colour), shape, guesses, "rendered_shape"))
    return ReportInputs(
        title="Demo of the whole chain",
        funnel=funnel,
        queries=make_queries(),
        link_rot=make_link_rot(),
        overlap=make_overlap(),
        objectives=compare(score_rows()),
        kept_pairs=kept,
        rejected=rejected,
        metrics=make_metrics(),
        scores=scores,
        examples=examples,
        configuration={
            "seed": 0,
            "fetch": {"timeout_seconds": 30.0, "user_agent": "clip-on-ray (+https://example.org)", "connect_to": {}},
            "balance": {"mode": "paper", "pairs_per_query": 250},
            "train": {"model": "tiny", "global_batch_size": 128, "chunk_size": 64, "epochs": 30, "precision": "bf16"},
            "weights": None,
        },
        versions={"python": "3.11.7", "ray": "2.60.0", "torch": "2.13.0", "pyarrow": "26.0.1", "clip-on-ray": "0.1.0"},
        seconds_by_stage={
            "site": 9.1,
            "queries": 4.0,
            "crawl": 61.3,
            "curate": 24.0,
            "pretrain": 141.8,
            "benchmark": 19.2,
        },
        snapshot=SnapshotFacts(snapshot_id="3f9c0a7de1b24455" * 4, num_pairs=rows, num_shards=2, num_bytes=19_400_000),
    )


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model with random weights."""
    folder = tmp_path_factory.mktemp("model")
    save_small_model(folder)
    return folder
