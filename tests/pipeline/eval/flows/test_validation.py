from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.eval.flows.benchmark_flow import EncodeUnits, evaluate, open_model, open_sets, open_store
from pipeline.eval.flows.validation import ValidationConfig, score_model
from pipeline.eval.protocols.suite import prompts_by_class
from pipeline.model.config import Objective
from tests.pipeline.eval.models import save_small_model
from tests.pipeline.eval.pictures import make_sets


@pytest.mark.parametrize("objective", ["contrastive", "bag", "caption"])
def test_validation_scores_equal_those_of_the_benchmark(objective: Objective, tmp_path: Path) -> None:
    make_sets(tmp_path / "sets")
    save_small_model(tmp_path / "model", objective)
    sources = open_sets(str(tmp_path / "sets"))
    store = open_store(str(tmp_path / "features"), str(tmp_path / "model"))
    units = pa.Table.from_pylist([asdict(unit) for source in sources for unit in store.missing(source)])
    prompts = {source.uri: prompts_by_class(source.dataset) for source in sources}
    EncodeUnits(prompts, batch_size=4, device="cpu")(units)
    expected = {
        name: score.value
        for source in sources
        if store.covers(source)
        for name, score in evaluate(source, store).scores.items()
    }
    assert len(expected) == (7 if objective == "contrastive" else 1)
    scores = score_model(open_model(str(tmp_path / "model")), sources=sources, batch_size=4, device="cpu")
    assert scores == expected


def test_an_invalid_option_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"validation\.cpus = -1: must be at least 0"):
        ValidationConfig(cpus=-1)
