import logging
import time
from pathlib import Path

import pytest

from cluster.resources import Pool
from pipeline.model.weights import model_folder
from pipeline.model.weights.model_folder import Model
from pipeline.train.checkpoints.background_saver import SavedCheckpoint
from pipeline.train.workers.validation import Scores, Validation, Validator
from tests.pipeline.model.models import small_clip
from tests.pipeline.train.checkpoints.test_checkpoint import vocabulary


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_local")
def test_one_model_is_scored_at_a_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def score(model: Model) -> dict[str, float]:
        while not (tmp_path / "go").exists():
            time.sleep(0.01)
        return {"scale": float(model.network.state_dict()["logit_scale"])}

    network = small_clip()
    files = model_folder.to_files(Model(network, vocabulary()))
    validator = Validator(Validation(score=score, pool=Pool(cpus=0)))
    assert validator.finished() is validator.wait() is None
    with caplog.at_level(logging.INFO, "clip"):
        for num_steps in (5, 10):
            validator.begin(SavedCheckpoint(num_steps, files | {"optimizer.pt": b""}))
    assert caplog.messages == ["no validation after step 10: step 5 is still being scored"]
    assert validator.finished() is None
    (tmp_path / "go").touch()
    assert validator.wait() == Scores(5, {"scale": network.logit_scale.item()})
    assert validator.wait() is None
